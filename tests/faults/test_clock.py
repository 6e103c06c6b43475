"""A sidecar on a machine whose clock is wrong, before a store that looks at it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from testbed.contents import content
from tests.wire.checks import check_mirrored
from tests.wire.journey import journey_of

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.object_stores import ObjectStore
    from testbed.rabbitmq import RabbitMQ

#: Runs the sidecar with every look at the wall clock off by so many seconds; the clock of the event loop is another.
WRONG = """
import sys, time
sound, off = time.time, float(sys.argv.pop(1))
time.time = lambda: sound() + off
from iterum_sidecar.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("off", [7200, -7200])
def test_a_wrong_clock_is_told_and_nothing_waits_for_it(
    off: int, rabbitmq: RabbitMQ, minio: ObjectStore, volume: Path, tmp_path: Path
) -> None:
    with journey_of(rabbitmq, minio, volume, tmp_path) as journey:
        for number in range(20):
            journey.seed({"a": content(number, 1000)})
        journey.queue_inputs()
        sidecar = journey.start_sidecar(command=[sys.executable, "-c", WRONG, str(off), "run"])
        journey.end(sidecar, journey.start_step("mirror"))
        check_mirrored(journey.outcome(), journey.contents, journey.store)
        log = sidecar.log_text()
        assert f"{'ahead of' if off > 0 else 'behind'} the store's" in log
        assert log.count("the clock of this machine") == 1
        assert "waiting for the store" not in log
