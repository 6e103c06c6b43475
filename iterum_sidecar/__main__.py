"""The program: `iterum-sidecar`, or `python -m iterum_sidecar`."""

from __future__ import annotations

import sys

from iterum_sidecar.early_stop import end_at_sigterm

__all__ = ["main"]


def main() -> int:
    """Carry out the command line and return the exit code."""
    if sys.argv[1:2] == ["run"]:
        # First of all: what is imported next takes most of the time until signals are received.
        end_at_sigterm()
    from iterum_sidecar import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
