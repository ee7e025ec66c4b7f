"""Examples to the batch of (seed, step).

Imports devices, flags, model.
"""
