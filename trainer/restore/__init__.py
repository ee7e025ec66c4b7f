"""Another's arrays to start values: matched by rules, assigned, proven.

Imports checkpoints, flags, model, readers.
"""
