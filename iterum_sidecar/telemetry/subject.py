"""What is told of over HTTP: one life of a sidecar in its pod, by what its parts know already."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iterum_sidecar.telemetry.stage_times import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from iterum_sidecar.patience import Patience
    from iterum_sidecar.settings import Settings
    from iterum_sidecar.sidecar import Sidecar
    from iterum_sidecar.telemetry.tally import Tally

__all__ = ["LAG_BOUNDS", "Subject"]

#: Seconds that the event loop may be late: a millisecond is usual, a tenth of a second is felt, and more is a fault.
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class Subject:
    """A sidecar and what stands beside it; nothing of it is changed by being told."""

    settings: Settings
    sidecar: Sidecar
    tally: Tally
    services: Mapping[str, Patience]
    """The waits for the services, by their names."""
    store_retries: Callable[[], int]
    """How many requests have been sent to the store again."""
    lag: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS))
    """How late the event loop was, in seconds."""
