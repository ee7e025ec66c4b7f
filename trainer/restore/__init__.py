"""Another's arrays to start values: matched by rules, assigned, proven.

Imports flags, model, readers.
"""
