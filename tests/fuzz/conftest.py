from __future__ import annotations

from hypothesis import settings

# A busy machine is no failure: what a test promises is never its own speed.
settings.register_profile("fuzz", deadline=None)
settings.load_profile("fuzz")
