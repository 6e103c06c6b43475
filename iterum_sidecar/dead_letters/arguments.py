"""The command line of `iterum-sidecar dead-letters`, and what it means."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iterum_sidecar.amqp.parameters import ConnectionParameters
from iterum_sidecar.dead_letters.choosing import Selection
from iterum_sidecar.dead_letters.command import Options
from iterum_sidecar.dead_letters.letter import DIGEST_MARK
from iterum_sidecar.dead_letters.place import SUFFIX
from iterum_sidecar.exit_codes import DEAD_LETTERS_MEANINGS
from iterum_sidecar.variables import LONGEST_QUEUE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["add_arguments", "options_of"]

#: The beginning of an ID, or of the digest of a body that names none.
_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,64}}|{DIGEST_MARK}[0-9a-f]{{1,64}}")

_ACTIONS: Final = {
    "list": ("show a table of them", "A table of the dead letters, the oldest first."),
    "show": (
        "show everything of one",
        "All headers of a dead letter, and its body: JSON with indents, or with escapes where it is none.",
    ),
    "retry": (
        "put them back on the queue that they came from",
        "Put dead letters back on the input queue, byte for byte, with their attempts at none and x-iterum-retries one more.\n"
        "Each is taken off the dead letters when the broker has confirmed it.",
    ),
    "discard": (
        "throw them away",
        "Throw dead letters away, after asking.",
    ),
}


def add_arguments(parser: argparse.ArgumentParser, *, seconds: Callable[[str], float]) -> None:
    """Add the actions and their options; `seconds` reads a number of them."""
    codes = "\n".join(
        f"  {int(code):3}  {meaning}" for code, meaning in DEAD_LETTERS_MEANINGS.items()
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    for name, (summary, description) in _ACTIONS.items():
        action = actions.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"exit codes:\n{codes}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == "show":
            action.add_argument("id", type=_name, metavar="ID", help=_ID_HELP)
        else:
            _add_selection(action, changes=name != "list")
        _add_forms(action, name)
        if name in {"retry", "discard"}:
            _add_changes(action, name)
        _add_place(action, seconds)


def options_of(given: argparse.Namespace) -> Options:
    """Return what was given, with what an action does not know as it is by default."""
    named = vars(given)
    if given.action == "show":
        selection = Selection(ids=(given.id,))
    else:
        selection = Selection(
            ids=tuple(dict.fromkeys(given.ids or ())),
            kinds=frozenset(given.kinds or ()),
            reason=given.reason,
            after=given.after,
            before=given.before,
            limit=given.limit,
            everything=named.get("everything", False),
        )
    known = {
        name: named[name]
        for name in (
            "queue",
            "broker_url",
            "seconds",
            "form",
            "to",
            "save",
            "yes",
            "dry_run",
            "raw",
        )
        if name in named
    }
    return Options(given.action, selection=selection, **known)


_ID_HELP: Final = (
    f"its ID, or what `list` shows of it ({DIGEST_MARK}… where the message names none)"
)


def _add_selection(action: argparse.ArgumentParser, *, changes: bool) -> None:
    group = action.add_argument_group(
        "which of them"
        + (
            " (what is said must all fit; something must be said)"
            if changes
            else "; all by default"
        )
    )
    group.add_argument(
        "--id",
        dest="ids",
        type=_name,
        nargs="+",
        action="extend",
        metavar="ID",
        help=_ID_HELP,
    )
    group.add_argument(
        "--kind",
        dest="kinds",
        nargs="+",
        action="extend",
        metavar="KIND",
        help="the kinds that `list` tells, such as input_missing",
    )
    group.add_argument(
        "--reason", default="", metavar="TEXT", help="the reason holds TEXT, in whatever case"
    )
    for name, when in (("--after", "at TIME or later"), ("--before", "before TIME")):
        group.add_argument(
            name,
            type=_moment,
            metavar="TIME",
            help=f"became a dead letter {when}: 2026-11-25, or 2026-11-25T13:30 (UTC unless it says otherwise)",
        )
    group.add_argument(
        "--limit", type=_at_least_one, metavar="N", help="no more than N, the oldest first"
    )
    if changes:
        group.add_argument("--all", dest="everything", action="store_true", help="all of them")


def _add_forms(action: argparse.ArgumentParser, name: str) -> None:
    forms = action.add_argument_group("what is shown").add_mutually_exclusive_group()
    forms.add_argument(
        "--json", dest="form", action="store_const", const="json", help="one object of JSON"
    )
    if name != "show":
        shown = "" if name == "list" else "with --dry-run: "
        forms.add_argument(
            "--wide",
            dest="form",
            action="store_const",
            const="wide",
            help=f"{shown}one line for each, with nothing cut",
        )
    else:
        forms.add_argument("--raw", action="store_true", help="the body alone, byte for byte")
    action.set_defaults(form="text")


def _add_changes(action: argparse.ArgumentParser, name: str) -> None:
    group = action.add_argument_group("what is done")
    if name == "retry":
        group.add_argument(
            "--to",
            type=_queue,
            default=argparse.SUPPRESS,
            metavar="QUEUE",
            help="the queue for all of them (default: where each came from)",
        )
    else:
        group.add_argument(
            "--save",
            type=_file,
            metavar="FILE",
            help="write them to a new FILE first, a line of JSON each",
        )
        group.add_argument("--yes", action="store_true", help="do not ask")
    group.add_argument(
        "--dry-run", action="store_true", help="show what would be done, and change nothing"
    )


def _add_place(action: argparse.ArgumentParser, seconds: Callable[[str], float]) -> None:
    group = action.add_argument_group(
        "where they are", "By default where the variables of a pod lead to, TLS included."
    )
    group.add_argument(
        "--queue",
        type=_queue,
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"the dead-letter queue, or its input queue (default: MQ_INPUT_QUEUE and {SUFFIX})",
    )
    group.add_argument(
        "--broker",
        dest="broker_url",
        type=_broker_url,
        default=argparse.SUPPRESS,
        metavar="URL",
        help="amqp://user:password@host:port/vhost, or amqps://. Whoever may list processes can read it: MQ_BROKER_URL, or a file"
        " that MQ_BROKER_URL_FILE names, keeps a password to itself",
    )
    group.add_argument(
        "--timeout",
        dest="seconds",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long the broker may leave us waiting (default: 10)",
    )


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise argparse.ArgumentTypeError(
            f"letters, digits, - and _, at most 64, or {DIGEST_MARK} and hexadecimal digits: {value[:80]!r}"
        )
    return value


def _moment(value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"a time such as 2026-11-25 or 2026-11-25T13:30: {value[:80]!r}"
        ) from None


def _at_least_one(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) == 0:
        raise argparse.ArgumentTypeError("a whole number from 1")
    return int(value)


def _queue(value: str) -> str:
    if not value.removesuffix(SUFFIX) or len(value.encode()) > LONGEST_QUEUE_NAME:
        raise argparse.ArgumentTypeError("the name of a queue")
    return value


def _file(value: str) -> Path:
    if not value:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(value)


def _broker_url(value: str) -> str:
    """Read an AMQP URL; what is wrong with it is told without it, since it may hold a password."""
    try:
        ConnectionParameters.from_url(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value
