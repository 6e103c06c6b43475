"""Real brokers and stores of one's own, for tests, the demo and benchmarks.

Everything here is synchronous and blocks: it drives the sidecar from outside, as a black box. A server is a
context manager; it has a data directory and ports of its own, and it ends with the program that started it,
however that program ends (`process.py`).
"""

from __future__ import annotations
