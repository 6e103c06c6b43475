"""What a fragment costs as more is queued, connected, in it, or beside it. `python -m benchmarks.scale`."""
