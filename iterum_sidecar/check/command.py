"""`iterum-sidecar check`: all areas at once, and what they found, in their order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TextIO

import trio

from iterum_sidecar.check.broker import look_at_broker
from iterum_sidecar.check.findings import AREAS, Finding, Findings, as_json, as_text, exit_code_of
from iterum_sidecar.check.management import look_at_management
from iterum_sidecar.check.manager import look_at_manager
from iterum_sidecar.check.store import look_at_store
from iterum_sidecar.check.variables import look_at_variables
from iterum_sidecar.check.volume import look_at_volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iterum_sidecar.exit_codes import ExitCode

__all__ = ["Options", "check_pod"]


class Options(NamedTuple):
    """How to look: seconds for each look, the broker's management interface if any, and the form of the report."""

    seconds: float = 5.0
    management_url: str = ""
    as_json: bool = False


def check_pod(environment: Mapping[str, str], options: Options, output: TextIO) -> ExitCode:
    """Look at everything that `run` would need in this environment, write a report, and return the exit code."""
    found = trio.run(_look, environment, options)
    output.write(as_json(found) if options.as_json else as_text(found))
    return exit_code_of(found)


async def _look(environment: Mapping[str, str], options: Options) -> list[Finding]:
    areas = {name: Findings(name) for name in AREAS}
    management = Findings("broker")
    seconds = options.seconds
    readable = look_at_variables(environment, areas["variables"])
    looks = {
        "volume": look_at_volume,
        "broker": look_at_broker,
        "store": look_at_store,
        "manager": look_at_manager,
    }
    async with trio.open_nursery() as nursery:
        for area, look in looks.items():
            nursery.start_soon(partial(look, readable, seconds=seconds, findings=areas[area]))
        nursery.start_soon(
            partial(
                look_at_management,
                readable,
                options.management_url,
                seconds=seconds,
                findings=management,
            )
        )
    areas["broker"].all += management.all
    return [finding for findings in areas.values() for finding in findings.all]
