"""The command line. Each command imports what it needs when it is called: the pod's path starts fast."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from iterum_sidecar import __version__
from iterum_sidecar.exit_codes import (
    CHECK_MEANINGS,
    DEAD_LETTERS_MEANINGS,
    LINT_MEANINGS,
    LOCAL_MEANINGS,
    NEW_MEANINGS,
    PROBE_MEANINGS,
    ExitCode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["main"]

_RUN = """\
Run the sidecar of one pipeline step beside its transformation, as the environment says:
docs/operating.md explains every variable. Without any, each that is missing is named.
"""

_CHECK = """\
Look at everything that `run` needs in this environment, and tell all that is wrong at once, with what mends it. Nothing that
stays is changed, but that a missing output bucket is made, as `run` does. docs/check.md explains what is told.
"""

_PROBE = """\
Ask the sidecar of this volume (DATA_VOLUME_PATH) how it is, as a probe of Kubernetes does: `live`, its heart-beat is younger
than 30 s; `startup`, it listens on its sockets; `ready`, it can work. docs/monitoring.md has the probes as a pod has them.
"""

_DEAD_LETTERS = """\
Look at the dead letters of a step, put them back on its input queue, or throw them away. MQ_BROKER_URL and MQ_INPUT_QUEUE say
where they are, or --broker and --queue; nothing else of a pod is needed. While it looks, the letters are not there for others.
docs/dead-letters.md shows it.
"""

_LOCAL = """\
Run a whole pipeline on this machine, with nothing else: every step's command runs as a process beside a sidecar, on a
broker and a store in this process. The same command again goes on where the last one stopped, and does again only what
depends on what has changed. docs/getting-started.md shows it step by step.
"""

_LINT = """\
Tell everything that is wrong with a pipeline file at once, each with its place and what to do.
"""

_NEW = """\
Make a folder with a pipeline file, a step, a test of it and sample input, which `iterum-sidecar local` then runs.
"""

#: How a shell tells of a program that SIGPIPE ended.
_READER_GONE = 128 + signal.SIGPIPE

#: Objects that may have been made, beyond those that have gone, before garbage is searched for; Python's default is 700. 50,000 and no search
#: at all were no better (`docs/performance.md`).
_OBJECTS_BETWEEN_COLLECTIONS = 10_000

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    _Commands = _SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code; 141, as a shell has it, when whoever read what is printed has gone."""
    try:
        try:
            return _carry_out(sys.argv[1:] if arguments is None else arguments)
        finally:
            # What is left would be written when the interpreter ends, which can only complain.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE


def _carry_out(arguments: Sequence[str]) -> int:
    parser = _parser(arguments)
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return ExitCode.USAGE
    try:
        code: int = given.carry_out(given)
    except KeyboardInterrupt:
        print("iterum-sidecar: interrupted before anything was begun", file=sys.stderr)
        return ExitCode.INTERRUPTED
    return code


@contextmanager
def _importing_for_long() -> Iterator[None]:
    """Import what stays until the end, and have it left alone by the search for garbage.

    What works on a fragment makes some hundred objects and no cycle of them, so to search as often as Python does by default finds next to
    nothing, and took a sixth of the CPU (`docs/performance.md`).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
        gc.enable()


def _run(_given: argparse.Namespace) -> int:
    with _importing_for_long():
        from iterum_sidecar.pod import run_in_pod

    return run_in_pod(os.environ)


def _check(given: argparse.Namespace) -> int:
    from iterum_sidecar.check.command import Options, check_pod

    return check_pod(
        os.environ, Options(given.timeout, given.management_url or "", given.as_json), sys.stdout
    )


def _probe(given: argparse.Namespace) -> int:
    from iterum_sidecar.telemetry.probe import probe

    passed, why = probe(given.question, os.environ)
    print(why)
    return ExitCode.DONE if passed else ExitCode.FAULT


def _dead_letters(given: argparse.Namespace) -> int:
    from iterum_sidecar.dead_letters.arguments import options_of
    from iterum_sidecar.dead_letters.command import work_on_dead_letters

    return work_on_dead_letters(os.environ, options_of(given), sys.stdout)


def _local(given: argparse.Namespace) -> int:
    with _importing_for_long():
        from iterum_sidecar.local.command import Options, run_local

    return run_local(
        Options(
            given.pipeline,
            given.input,
            given.output,
            group=given.group,
            group_by=given.group_by,
            match=given.match,
            fresh=given.fresh,
            prune=given.prune,
            form=given.form,
        )
    )


def _lint(given: argparse.Namespace) -> int:
    from iterum_sidecar.pipeline.lint_command import lint_command

    return lint_command(given.pipeline, sys.stdout)


def _new(given: argparse.Namespace) -> int:
    from iterum_sidecar.scaffold.command import new_pipeline

    return new_pipeline(given.name, sys.stdout)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iterum-sidecar",
        description="The sidecar of an Iterum pipeline step, and whole pipelines on one machine.",
        epilog="`iterum-sidecar COMMAND --help` tells the options and the exit codes of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"iterum-sidecar {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    run = _add(
        commands,
        "run",
        "run the sidecar of one step, as the environment says",
        _RUN,
        _exit_codes({code: code.meaning for code in ExitCode}),
    )
    run.set_defaults(carry_out=_run)
    _add_check(commands)
    probe = _add(
        commands,
        "probe",
        "ask whether the sidecar is live, started or ready",
        _PROBE,
        _exit_codes(PROBE_MEANINGS),
    )
    probe.add_argument("question", choices=["live", "ready", "startup"])
    probe.set_defaults(carry_out=_probe)
    _add_dead_letters(commands, wanted="dead-letters" in arguments)
    _add_local(commands)
    lint = _add(
        commands,
        "lint",
        "tell everything that is wrong with a pipeline file",
        _LINT,
        _exit_codes(LINT_MEANINGS),
    )
    lint.add_argument("pipeline", type=Path, help="the pipeline file: JSON, TOML or YAML")
    lint.set_defaults(carry_out=_lint)
    new = _add(
        commands,
        "new",
        "make a small pipeline that works, to begin with",
        _NEW,
        _exit_codes(NEW_MEANINGS),
    )
    new.add_argument("name", help="the folder to make, and the name of the pipeline")
    new.set_defaults(carry_out=_new)
    return parser


def _add_check(commands: _Commands) -> None:
    check = _add(
        commands,
        "check",
        "look at everything that `run` needs, and tell what is wrong",
        _CHECK,
        _exit_codes(CHECK_MEANINGS),
    )
    check.add_argument(
        "--timeout",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long each look may take (default: 5)",
    )
    check.add_argument(
        "--management-url",
        type=_web_address,
        metavar="URL",
        help="the broker's management interface, http://user:password@host:15672, which tells more",
    )
    check.add_argument("--json", dest="as_json", action="store_true", help="one object of JSON")
    check.set_defaults(carry_out=_check)


def _add_dead_letters(commands: _Commands, *, wanted: bool) -> None:
    dead_letters = _add(
        commands,
        "dead-letters",
        "look at dead letters, put them back, or throw them away",
        _DEAD_LETTERS,
        _exit_codes(DEAD_LETTERS_MEANINGS),
    )
    dead_letters.set_defaults(carry_out=_dead_letters)
    if wanted:
        # Its arguments are many, and the other commands start without them.
        from iterum_sidecar.dead_letters.arguments import add_arguments

        add_arguments(dead_letters, seconds=_seconds)


def _add_local(commands: _Commands) -> None:
    local = _add(
        commands,
        "local",
        "run a whole pipeline on this machine",
        _LOCAL,
        _exit_codes(LOCAL_MEANINGS),
    )
    local.add_argument("pipeline", type=Path, help="the pipeline file: JSON, TOML or YAML")
    local.add_argument(
        "--input", type=_folder, required=True, metavar="DIR", help="the folder of files to work on"
    )
    local.add_argument(
        "--output", type=_folder, required=True, metavar="DIR", help="the folder for the results"
    )
    inputs = local.add_argument_group("what of the input becomes a fragment (default: each file)")
    inputs.add_argument("--group", metavar="N", help="N files each, in the order of their names")
    inputs.add_argument(
        "--group-by", metavar="folder", help="'folder': all files of a folder together"
    )
    inputs.add_argument(
        "--match", metavar="PATTERN", help="only files that fit, such as '*.jpg' or '2024/**/*.csv'"
    )
    again = local.add_argument_group("when it has been run before")
    again.add_argument(
        "--fresh", action="store_true", help="start over: forget what earlier runs have done"
    )
    again.add_argument(
        "--prune", action="store_true", help="remove results that this run would not make"
    )
    shown = local.add_argument_group("what is shown").add_mutually_exclusive_group()
    shown.add_argument(
        "--json", dest="form", action="store_const", const="json", help="a line of JSON each time"
    )
    shown.add_argument(
        "--plain", dest="form", action="store_const", const="plain", help="lines, no table"
    )
    local.set_defaults(carry_out=_local, form="auto")


def _seconds(value: str) -> float:
    """Read a number of seconds that is more than none and not for ever."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 600:
        raise argparse.ArgumentTypeError("a number of seconds, more than 0 and at most 600")
    return seconds


def _web_address(value: str) -> str:
    """Read an http(s) URL; what is wrong with it is told without it, since it may hold a password."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isascii() or not value.isprintable():
        raise argparse.ArgumentTypeError("http://user:password@host:15672, or https://")
    return value


def _folder(value: str) -> Path:
    """Read the path of a folder; an empty text is a variable that was not set, and not the current folder."""
    if not value:
        raise argparse.ArgumentTypeError("an empty path; for the current folder write .")
    return Path(value)


def _add(
    commands: _Commands, name: str, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _exit_codes(meanings: Mapping[ExitCode, str]) -> str:
    lines = ["exit codes:"]
    lines += [f"  {int(code):3}  {meaning}" for code, meaning in meanings.items()]
    return "\n".join(lines)
