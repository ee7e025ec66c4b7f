"""What a person sees of a run: the screen, metrics.jsonl, TensorBoard.

Imports errors.
"""
