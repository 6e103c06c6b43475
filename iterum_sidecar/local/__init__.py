"""A whole pipeline on one machine: sidecars, steps, broker and store of one run."""
