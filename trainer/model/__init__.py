"""A model module, and the one naming of its variables.

Imports flags.
"""
