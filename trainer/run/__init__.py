"""Flags to a run: assembled, started, resumed, saved.

Imports checkpoints, data, devices, flags, groups, model, readers, report, restore, training.
"""
