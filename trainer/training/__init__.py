"""The compiled step and the loop around it.

Imports data, devices, groups, model, report.
"""
