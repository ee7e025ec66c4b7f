"""Where replicas live, and what workers agree on.

Imports errors.
"""
