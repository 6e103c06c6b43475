"""All faults at once, at random, for as long as is wished: `python -m tests.soak --minutes 30 --seed 1`; see `tests/README.md`."""
