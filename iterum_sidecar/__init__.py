"""The sidecar of an Iterum pipeline step, on Trio.

`docs/architecture.md` shows how its parts hang together and where to change what.
"""

from __future__ import annotations

__version__ = "0.1.0"
