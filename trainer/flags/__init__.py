"""What a user writes: the schema of all flags, and how text becomes values.

Imports errors.
"""
