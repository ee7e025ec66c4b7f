"""Who trains what, how and when: rules, phases, optimizers, schedules, the plan.

Imports flags, model.
"""
