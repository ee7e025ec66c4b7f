"""The compiled step and the loop around it.

Imports data, devices, flags, groups, model, report.
"""
