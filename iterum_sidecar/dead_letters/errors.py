"""How a command on dead letters ends otherwise than it was asked to."""

from __future__ import annotations

from iterum_sidecar.exit_codes import ExitCode, SidecarError

__all__ = ["Misunderstood", "NotDone"]


class NotDone(SidecarError):
    """What was asked for cannot be done, or not all of it; the text says what is so and what to do."""

    exit_code = ExitCode.FAULT


class Misunderstood(SidecarError):
    """The command line asks for what makes no sense."""

    exit_code = ExitCode.USAGE
