"""The process of one contender: told by its argument what to do, it prints what that took. Started by `measuring`."""

from __future__ import annotations

import os
import sys

import msgspec

from benchmarks.stages.catalogue import stage_named
from benchmarks.stages.task import Meter, Task


def main() -> None:
    """Do one task."""
    task = msgspec.json.decode(sys.argv[1], type=Task)
    meter = Meter()
    stage_named(task.stage).contender(task.contender).load()(task, meter)
    print(msgspec.json.encode(meter.measured()).decode(), flush=True)
    # All is measured, and a library's own threads may abort while the interpreter ends (obstore's do, now and then).
    os._exit(0)


if __name__ == "__main__":
    main()
