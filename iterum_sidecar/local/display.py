"""What one sees of a run while it lasts: a live table on a terminal, lines elsewhere, JSON for machines."""

from __future__ import annotations

import io
import os
import select
import shutil
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import asdict, astuple
from json import dumps
from typing import TYPE_CHECKING, Literal, TypeAlias

import trio

from iterum_sidecar.local import summary as summaries
from iterum_sidecar.local.progress import Rates, as_time, count, in_one_line, picture, printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from iterum_sidecar.local.progress import Line, RunProgress
    from iterum_sidecar.local.summary import Summary

__all__ = ["Display", "Form", "JsonLines", "Lines", "Outlet", "choose_display"]

Form: TypeAlias = Literal["auto", "json", "plain"]

#: Seconds for which the end waits for a reader that has stopped reading (Ctrl-S, a pager); by then no work is held up.
LONGEST_FLUSH = 10.0
#: Seconds after which a line is written though nothing has changed: who watches sees that the run is alive.
LONGEST_SILENCE = 30.0

_HINT = "for a live table: pip install 'iterum-sidecar[local]'"
#: For terminals that cannot show more than ASCII.
_PLAIN = str.maketrans({"…": "..."})


class Outlet:
    """A stream that never holds up the run: what is written goes out from a thread of its own.

    A terminal that was stopped (Ctrl-S, a dead connection) or a pipe whose reader sleeps would block the whole run
    otherwise. A reader that has gone is no error: `lost` tells, and nothing more is written. A stream without a descriptor
    is written at once. The stream itself stays open.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor: int | None = None
        self.lost = False
        self._pending: list[bytes] = []
        self._changed = threading.Condition()
        #: Lives only while there is something to write.
        self._thread: threading.Thread | None = None
        self.encoding = (stream.encoding or "utf-8").lower()
        self.unicode = self.encoding.startswith("utf")
        try:
            # What was printed before comes before.
            stream.flush()
        except OSError:
            self.lost = True
        with suppress(OSError):
            self._descriptor = stream.fileno()

    @property
    def busy(self) -> bool:
        """Whether something that was written has not gone out yet."""
        return self._thread is not None

    def size(self) -> tuple[int, int]:
        """Return the columns and rows of the terminal; 80 and 24 where none tells."""
        if self._descriptor is not None:
            with suppress(OSError):
                size = os.get_terminal_size(self._descriptor)
                if size.columns and size.lines:
                    return size.columns, size.lines
        return shutil.get_terminal_size()

    def write(self, text: str) -> None:
        """Write a text; what the stream's encoding lacks becomes an escape."""
        if self.lost or not text:
            return
        if not self.unicode:
            text = text.translate(_PLAIN)
        data = text.encode(self.encoding, errors="backslashreplace")
        if self._descriptor is None:
            self._stream.write(data.decode(self.encoding))
            return
        with self._changed:
            self._pending.append(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="display", daemon=True)
                self._thread.start()

    def flush(self, seconds: float) -> bool:
        """Wait until all has gone out, `seconds` at most, and tell whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.busy, seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                data = b"".join(self._pending)
                self._pending.clear()
                if not data:
                    self._thread = None
                    self._changed.notify_all()
                    return
            if not self.lost:
                self._send(data)

    def _send(self, data: bytes) -> None:
        assert self._descriptor is not None
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Someone who shares the terminal has made it non-blocking.
                select.select([], [self._descriptor], [])
            except OSError:
                self.lost = True
                return


class Display(ABC):
    """What one sees of a run. Made, used and closed by one task; only `run` is asynchronous, and nothing blocks for long."""

    #: Seconds until the first look at the run, and between looks.
    first: float
    every: float

    def __init__(self, outlet: Outlet, clock: Callable[[], float] = trio.current_time) -> None:
        self._outlet = outlet
        self._clock = clock
        self._began = 0.0
        self._now = 0.0
        self._running = False
        self._rates = Rates()
        self._told: object = None
        self._told_at = 0.0

    @abstractmethod
    def say(self, text: str) -> None:
        """Tell something now, above what is shown; also before and after `run`."""

    async def run(self, snapshot: Callable[[], RunProgress]) -> None:
        """Show what `snapshot` returns until cancelled, and its last state once in the end; call it once."""
        self._began = self._now = self._clock()
        self._running = True
        self._tell(self._look(snapshot), first=True)
        delay = self.first
        try:
            while True:
                await trio.sleep(delay)
                self._show(self._look(snapshot))
                delay = self.every
        finally:
            self._show_last(self._look(snapshot))
            self._running = False

    @abstractmethod
    def conclude(self, summary: Summary) -> None:
        """Tell how the run went, after `run`."""

    def close(self, seconds: float = LONGEST_FLUSH) -> None:
        """Let what was written go out, for `seconds` at most; no error if called more than once."""
        self._outlet.flush(seconds)

    @property
    def seconds(self) -> float:
        """How long the run has lasted."""
        return (self._clock() if self._running else self._now) - self._began

    def _look(self, snapshot: Callable[[], RunProgress]) -> RunProgress:
        self._now = self._clock()
        progress = snapshot()
        for step in progress.steps:
            self._rates.note(step, self._now)
        return progress

    @abstractmethod
    def _begin(self, progress: RunProgress) -> None: ...

    def _show(self, progress: RunProgress) -> None:
        """Tell nothing twice, but for a sign of life."""
        silent = self._now - self._told_at >= LONGEST_SILENCE - 0.01
        if not self._outlet.busy and (silent or self._told != astuple(progress)):
            self._tell(progress)

    def _show_last(self, progress: RunProgress) -> None:
        if self._told != astuple(progress):
            self._tell(progress)

    def _tell(self, progress: RunProgress, *, first: bool = False) -> None:
        # A copy: who made the snapshot may go on counting in it.
        self._told, self._told_at = astuple(progress), self._now
        (self._begin if first else self._write_progress)(progress)

    @abstractmethod
    def _write_progress(self, progress: RunProgress) -> None: ...


class Lines(Display):
    """A line every few seconds, for pipes, logs and terminals that cannot do more."""

    first = 1.0
    every = 5.0

    def say(self, text: str) -> None:
        """Write a line, or the lines of a text."""
        self._outlet.write(printable(text, lines=True) + "\n")

    def conclude(self, summary: Summary) -> None:
        """Write the summary."""
        columns, _ = self._outlet.size()
        self._outlet.write(f"\n{summaries.text(summary, columns)}\n")

    def _begin(self, progress: RunProgress) -> None:
        steps = ", ".join(
            step.name if step.instances == 1 else f"{step.name} x{step.instances}"
            for step in progress.steps
        )
        fragments = count(progress.first_fragments, "fragment")
        self.say(f"{printable(progress.pipeline)}: {fragments}, steps: {steps or 'none'}")

    def _write_progress(self, progress: RunProgress) -> None:
        line = in_one_line(progress, self._rates, self._now)
        self.say(f"{as_time(self.seconds, whole=True):>10}  {line}")


class JsonLines(Display):
    """One JSON object a line, in ASCII: the events `plan`, `progress`, `message` and `summary`."""

    first = 1.0
    every = 1.0

    def say(self, text: str) -> None:
        """Write a `message` event."""
        self._event("message", text=text)

    def conclude(self, summary: Summary) -> None:
        """Write the `summary` event."""
        self._outlet.write(f'{{"event": "summary", {summaries.json(summary)[1:]}\n')

    def _begin(self, progress: RunProgress) -> None:
        self._event("plan", **asdict(progress))

    def _write_progress(self, progress: RunProgress) -> None:
        fields = asdict(progress)
        for step, told in zip(progress.steps, fields["steps"], strict=True):
            told["rate"] = _rounded(self._rates.rate(step, self._now))
            told["seconds_left"] = _rounded(self._rates.time_left(step, self._now))
        self._event("progress", **fields)

    def _event(self, event: str, **fields: object) -> None:
        line = dumps({"event": event, "seconds": _rounded(self.seconds), **fields})
        self._outlet.write(line + "\n")


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)


class LiveTable(Display):
    """A table with a row for each step, drawn anew in place; needs rich, which no other form imports."""

    #: Five times a second is smooth, and drawing costs little of a core.
    first = every = 0.2

    def __init__(self, outlet: Outlet, clock: Callable[[], float] = trio.current_time) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(outlet, clock)
        self._paper = io.StringIO()
        # Without highlight, markup and emoji, a name of the user's is shown as it is.
        self._console = Console(
            file=self._paper, force_terminal=True, force_interactive=True, legacy_windows=False,
            highlight=False, markup=False, emoji=False,
        )  # fmt: skip
        self._live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._messages: list[str] = []

    def say(self, text: str) -> None:
        """Show a text above the table, at the latest with its next picture."""
        self._messages.append(printable(text, lines=True))
        if not self._running:
            self._draw()

    def conclude(self, summary: Summary) -> None:
        """Show the summary below the table."""
        columns, _ = self._outlet.size()
        first, end, rest = summaries.text(summary, columns).partition("\n")
        style = {"done": "bold green", "nothing to do": "bold", "failed": "bold red"}
        self._print(
            [("\n", ""), (first, style.get(summary.outcome, "bold yellow")), (end + rest, "")]
        )
        self._draw()

    def close(self, seconds: float = LONGEST_FLUSH) -> None:
        """Give the cursor back and let what was written go out."""
        self._live.stop()
        self._draw()
        super().close(seconds)

    def _begin(self, progress: RunProgress) -> None:
        self._live.start()
        self._write_progress(progress)

    def _show(self, progress: RunProgress) -> None:
        # While nothing changes, the clock goes on all the same: one picture a second.
        changed = self._told != astuple(progress) or self._now - self._told_at >= 1
        if (changed or self._messages) and not self._outlet.busy:
            self._tell(progress)

    def _write_progress(self, progress: RunProgress) -> None:
        columns, rows = self._outlet.size()
        self._paint(progress, columns, rows)
        self._draw()

    def _show_last(self, progress: RunProgress) -> None:
        columns, _ = self._outlet.size()
        self._draw()
        self._paint(progress, columns, None)
        self._live.stop()
        self._draw()

    def _draw(self) -> None:
        """Bring messages and, while it is shown, the table to the terminal in one write, which does not flicker."""
        self._console.width, self._console.height = self._outlet.size()
        if self._messages:
            self._print([("\n".join(self._messages), "")])
            self._messages.clear()
        if self._live.is_started:
            self._live.refresh()
        self._outlet.write(self._paper.getvalue())
        self._paper.seek(0)
        self._paper.truncate()

    def _print(self, parts: Line) -> None:
        from rich.text import Text

        self._console.print(Text.assemble(*parts))

    def _paint(self, progress: RunProgress, columns: int, rows: int | None) -> None:
        from rich.text import Text

        signs = "━─" if self._outlet.unicode else "=-"
        lines = picture(progress, self._rates, self._now, self.seconds, (columns, rows), signs)
        end = Text("\n", no_wrap=True, overflow="crop")
        self._live.update(end.join(Text.assemble(*line) for line in lines))


def choose_display(
    form: Form, stream: TextIO, clock: Callable[[], float] = trio.current_time
) -> Display:
    """Return the display for a stream: "auto" is a live table on a terminal and lines elsewhere.

    A live table needs rich; a terminal without it gets lines and one hint. "plain" is always lines, "json" always JSON.
    `clock` gives seconds, and is that of Trio, so a display is made and run inside Trio.
    """
    outlet = Outlet(stream)
    if form == "json":
        return JsonLines(outlet, clock)
    simple = os.environ.get("TERM", "dumb") in {"dumb", "unknown"}
    if form == "plain" or simple or not stream.isatty():
        return Lines(outlet, clock)
    try:
        return LiveTable(outlet, clock)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
    lines = Lines(outlet, clock)
    lines.say(_HINT)
    return lines
