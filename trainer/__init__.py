"""A low-level training-loop framework for TensorFlow 2."""
