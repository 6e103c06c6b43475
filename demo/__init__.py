"""A step of a pipeline on your own machine, from pictures in a bucket to results with their lineage.

python -m demo
"""

from __future__ import annotations
