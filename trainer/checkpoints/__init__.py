"""What is durable on the disk: a checkpoint is whole, or it is not there.

Imports devices, flags, model.
"""
