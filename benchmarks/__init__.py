"""What is measured against others, side by side in one run. Run as `python -m benchmarks.NAME`."""
