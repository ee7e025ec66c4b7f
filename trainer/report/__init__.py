"""What a person sees of a run: the screen, metrics.jsonl, TensorBoard, the page of a run.

Imports errors.
"""
