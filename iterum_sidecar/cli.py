"""The command line. Each command imports what it needs when it is called: the pod's path starts fast."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from iterum_sidecar import __version__
from iterum_sidecar.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_RUN = """\
Run the sidecar of one pipeline step beside its transformation, as the environment says:
docs/operating.md explains every variable. Without any, each that is missing is named.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code."""
    parser = _parser()
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if given.command is None:
        parser.print_help()
        return ExitCode.USAGE
    from iterum_sidecar.pod import run_in_pod

    return run_in_pod(os.environ)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iterum-sidecar",
        description="The sidecar of an Iterum pipeline step.",
        epilog=_exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"iterum-sidecar {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    commands.add_parser(
        "run",
        help="run the sidecar of one step, as the environment says",
        description=_RUN,
        epilog=_exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _exit_codes() -> str:
    lines = ["exit codes:"]
    lines += [f"  {int(code):3}  {code.meaning}" for code in ExitCode]
    return "\n".join(lines)
