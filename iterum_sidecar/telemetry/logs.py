"""Structured logs: one event a line, for people on a terminal and as JSON elsewhere.

The severity names of the JSON form are those of Google Cloud Logging's `LogSeverity`, which other collectors read too.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

__all__ = ["Log", "configure", "get_log", "in_step", "tell_warnings"]

_ROOT = "iterum_sidecar"
#: A value longer than this many characters is cut: a line is for reading, and a peer's text may be of any length.
_LONGEST_VALUE = 2000
_LONGEST_ITEM = 100
#: How often one kind of warning is told to a person; all are in the log.
_MOST_TOLD = 3
_MOST_ITEMS = 10
#: What some readers take for the end of a line, and JSON does not escape.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


_step: ContextVar[str] = ContextVar("step", default="")


@contextmanager
def in_step(name: str) -> Iterator[None]:
    """Add the name of a step to every line that is logged in this context, where one process runs several."""
    token = _step.set(name)
    try:
        yield
    finally:
        _step.reset(token)


class Log:
    """A named logger whose events carry fields: `log.info("dead letter", fragment_id=…, reason=…)`."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: object) -> None:
        """Log what only someone who looks into one fragment's fate wants to see."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log what an operator wants to see once."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what went wrong and is being dealt with."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log what someone has to look at."""
        self._emit(logging.ERROR, event, fields)

    def exception(self, event: str, error: BaseException, **fields: object) -> None:
        """Log a fault of our own, with its traceback."""
        self._logger.log(logging.ERROR, event, exc_info=error, extra={"fields": fields})

    def _emit(self, level: int, event: str, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields})


def get_log(name: str) -> Log:
    """Return the log of a module; give it `__name__`."""
    return Log(logging.getLogger(name))


def configure(level: str, form: str, stream: TextIO | None = None, **constant: str) -> None:
    """Write the sidecar's log to `stream` (standard error) from `level` on; `form` is auto, text or json.

    `constant` fields (the step, the pipeline) are added to each line of the JSON form.
    """
    stream = sys.stderr if stream is None else stream
    as_json = form == "json" or (form == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonFormatter(constant) if as_json else _TextFormatter())
    logger = logging.getLogger(_ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


@contextmanager
def tell_warnings(
    tell: Callable[[str], None], *, but: Collection[str], words: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Give `tell` a line for each warning that is logged in this context, but for those whose events are named in `but`.

    `words` has another wording for events, as `str.format` takes it with the fields.
    """
    handler = _Teller(tell, frozenset(but), words or {})
    logger = logging.getLogger(_ROOT)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Teller(logging.Handler):
    def __init__(
        self, tell: Callable[[str], None], but: frozenset[str], words: Mapping[str, str]
    ) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell
        self._but = but
        self._words = words
        self._told: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        event = record.getMessage()
        self._told[event] += 1
        if record.levelno > logging.WARNING:
            return  # an end is told by whoever ends
        if event in self._but or self._told[event] > _MOST_TOLD:
            return
        fields = _fields(record)
        step = fields.pop("step", None)
        if event in self._words:
            told = self._words[event].format(**fields)
        else:
            told = event + "".join(
                f", {name}: {_readable(value)}" for name, value in fields.items()
            )
        self._tell(f"{step}: {told}" if step else told)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    if step := _step.get():
        fields = {"step": step, **fields}
    return {name: _cut(value) for name, value in fields.items()}


def _cut(value: object) -> object:
    """Return a value short enough for a line; what is no number, text or list is shown as text."""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple):
        few = [_text(each)[:_LONGEST_ITEM] for each in value[:_MOST_ITEMS]]
        return few if len(value) <= _MOST_ITEMS else [*few, f"and {len(value) - _MOST_ITEMS} more"]
    return _text(value)[:_LONGEST_VALUE]


def _text(value: object) -> str:
    """Return a value as text that can be encoded: a file's name may hold anything."""
    return str(value).encode(errors="backslashreplace").decode()


class _JsonFormatter(logging.Formatter):
    def __init__(self, constant: dict[str, str]) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        seconds, fraction = divmod(record.created, 1)
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(fraction * 1000):03d}Z",
            "severity": record.levelname,
            "message": _text(record.getMessage()),
            **self._constant,
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode().translate(_LINE_ENDS)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f"  {name}={_readable(value)}" for name, value in _fields(record).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{moment} {record.levelname.lower():7} {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _readable(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value)
    return text if text and text.isprintable() and " " not in text else repr(text)
