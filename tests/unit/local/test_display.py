from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.local.display import Outlet, choose_display
from iterum_sidecar.local.progress import RunProgress, StepProgress
from iterum_sidecar.local.summary import Places, StepSummary, Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from iterum_sidecar.local.display import Display, Form

SUMMARY = Summary(
    "images", "done", 3.2, 24, 49, 0, Places("results/"), 0, [StepSummary("edges", 24, 0, 0, 24)]
)


class Stream(io.StringIO):
    """A stream without a descriptor that keeps each write by itself."""

    encoding = "utf-8"

    def __init__(self, *, terminal: bool = False, encoding: str = "utf-8") -> None:
        super().__init__()
        self._terminal = terminal
        self.encoding = encoding
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)

    def pictures(self) -> list[list[str]]:
        """Return the lines of each write, without what steers the terminal."""
        return [visible(write).split("\n") for write in self.writes]

    def screen(self) -> list[str]:
        return on_screen(self.getvalue())


def on_screen(text: str) -> list[str]:
    """Return what a terminal of endless height shows after a text; it knows the few controls that the table needs."""
    lines, row, column = [""], 0, 0
    for control, number, letter, character in re.findall(
        r"(\x1b\[([0-9;?]*)([A-Za-z]))|(.)", text, re.DOTALL
    ):
        if control:
            match letter:
                case "A":
                    row -= int(number)
                case "K":
                    assert number == "2"
                    lines[row] = ""
                case _:
                    assert letter in "mhl"
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return lines


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("NO_COLOR", raising=False)


def progress(done: int = 0, failed: int = 0, results_before: int = 0) -> RunProgress:
    edges = StepProgress("edges", 2, 60 - done, in_work=2, done=done, state="works", expected=62)
    return RunProgress(
        "images", 62, [edges, StepProgress("sheet")], done, results_before, failed=failed
    )


async def run_for(
    seconds: float, display: Display, snapshot: Callable[[], RunProgress] = progress
) -> None:
    with trio.move_on_after(seconds):
        await display.run(snapshot)


def growing() -> Callable[[], RunProgress]:
    """Return a snapshot in which two fragments a second are done."""
    start = trio.current_time()
    return lambda: progress(int((trio.current_time() - start) * 2 + 0.001))


# -- lines


async def test_lines_come_after_a_second_then_every_five_and_in_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream()
    await run_for(13, choose_display("auto", stream), growing())
    assert stream.getvalue().splitlines() == [
        "images: 62 fragments, steps: edges x2, sheet",
        "       1 s  edges 2 of 62, 2.0/s, 30 s left; sheet waiting; 2 results",
        "       6 s  edges 12 of 62, 2.0/s, 25 s left; sheet waiting; 12 results",
        "      11 s  edges 22 of 62, 2.0/s, 20 s left; sheet waiting; 22 results",
        "      13 s  edges 26 of 62, 2.0/s, 18 s left; sheet waiting; 26 results",
    ]


async def test_where_nothing_changes_a_line_every_half_minute_is_enough(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream()
    await run_for(100, choose_display("plain", stream))
    assert [line.split("edges")[0].strip() for line in stream.writes[1:]] == [
        "31 s",
        "1 min 1 s",
        "1 min 31 s",
    ]


async def test_a_snapshot_that_is_changed_in_place_is_seen_to_change(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, same = Stream(), progress()

    def snapshot() -> RunProgress:
        same.results += 1
        return same

    await run_for(7, choose_display("plain", stream), snapshot)
    assert len(stream.writes) == 4


async def test_the_last_state_is_told_though_the_run_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream()
    state = progress()
    with pytest.RaisesGroup(ValueError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(choose_display("plain", stream).run, lambda: state)
            await trio.sleep(3)
            state = progress(41)
            raise ValueError
    assert "edges 41 of 62" in stream.writes[-1]


async def test_what_is_said_is_a_line_of_its_own_that_cannot_steer_a_terminal() -> None:
    stream = Stream()
    display = choose_display("plain", stream)
    display.say("edges-1 died \x1b[2J(exit code 1)")
    display.conclude(SUMMARY)
    assert stream.getvalue() == (
        "edges-1 died \\x1b[2J(exit code 1)\n"
        "\n24 fragments became 49 files in 3.2 s.\n\nresults  results/\n"
    )


async def test_a_stream_that_lacks_a_character_gets_something_in_its_place() -> None:
    stream = Stream(encoding="ascii")
    display = choose_display("plain", stream)
    display.say("é and …")
    assert stream.getvalue() == "\\xe9 and ...\n"


# -- JSON


async def test_json_is_an_object_a_line_for_each_event(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream(terminal=True)
    display = choose_display("json", stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(display.run, growing())
        await trio.sleep(1.5)
        display.say("é\udcff\n")
        nursery.cancel_scope.cancel()
    display.conclude(SUMMARY)
    assert stream.getvalue().isascii()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [each["event"] for each in events] == [
        "plan",
        "progress",
        "message",
        "progress",
        "summary",
    ]
    plan, first, message, last, summary = events
    assert plan["steps"][0]["instances"] == 2
    assert first["seconds"] == 1
    assert first["steps"][0]["done"] == 2
    assert first["steps"][0]["rate"] == 2
    assert first["steps"][0]["seconds_left"] == 30
    assert first["steps"][1]["seconds_left"] is None
    assert message == {"event": "message", "seconds": 1.5, "text": "é\udcff\n"}
    assert last["steps"][0]["done"] == 3
    assert summary["results_new"] == 49


async def test_json_tells_no_state_twice_but_for_a_sign_of_life(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream()
    await run_for(65, choose_display("json", stream))
    events = [json.loads(line) for line in stream.writes]
    assert [round(each["seconds"]) for each in events] == [0, 30, 60]


# -- the live table


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
async def test_the_table_fits_the_terminal(
    columns: int, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Stream(terminal=True)
    await run_for(10, choose_display("auto", stream), growing())
    picture = stream.screen()
    assert len(picture) == 5
    assert picture[0] == "images  62 fragments  20 results  10 s"
    assert picture[1].split()[0] == "step"
    assert picture[2].startswith("edges x2  ")
    assert picture[4] == ""
    assert "20 of 62" in picture[2]
    assert re.search(r" 2[01] s ", picture[2])
    assert "━" in picture[2]
    assert "waits" in picture[3]
    assert all(len(line) < columns for line in picture)
    assert bool(re.search(r" 2\.[01]/s ", picture[2])) == (columns >= 80)


async def test_the_table_is_drawn_at_most_eight_times_a_second_and_once_where_nothing_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    busy, idle = Stream(terminal=True), Stream(terminal=True)
    start = trio.current_time()
    await run_for(
        10,
        choose_display("auto", busy),
        lambda: progress(results_before=int((trio.current_time() - start) * 1000)),
    )
    await run_for(10, choose_display("auto", idle))
    assert 20 < len(busy.writes) <= 80
    assert len(idle.writes) <= 13


async def test_a_picture_and_what_is_said_above_it_go_out_in_one_write(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream(terminal=True)
    display = choose_display("auto", stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(display.run, progress)
        await trio.sleep(0.3)
        before = len(stream.writes)
        display.say("edges-1 died (exit code 1), [red]started[/red] :smile: again\x1b[2J")
        assert len(stream.writes) == before
        await trio.sleep(0.2)
        nursery.cancel_scope.cancel()
    said, *table = stream.pictures()[before]
    assert said == "edges-1 died (exit code 1), [red]started[/red] :smile: again\\x1b[2J"
    assert any(line.startswith("edges x2") for line in table)


async def test_what_is_said_in_the_last_moment_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream(terminal=True)
    display = choose_display("auto", stream)
    display.say("before")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(display.run, progress)
        await trio.sleep(0.3)
        display.say("within")
        nursery.cancel_scope.cancel()
    display.say("after")
    before, within, headline, *_, after, end = stream.screen()
    assert (before, within, after, end) == ("before", "within", "after", "")
    assert headline.startswith("images")


async def test_a_low_terminal_sees_all_rows_in_the_end(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "8")
    stream = Stream(terminal=True)
    run = RunProgress("x", steps=[StepProgress(f"step-{index}") for index in range(20)])
    await run_for(1.5, choose_display("auto", stream), lambda: run)
    assert "and 16 more steps" in stream.pictures()[0]
    assert [line.split()[0] for line in stream.screen()[2:-1]] == [step.name for step in run.steps]


async def test_the_cursor_comes_back_and_the_summary_follows(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream(terminal=True)
    display = choose_display("auto", stream)
    await run_for(0.5, display)
    display.conclude(SUMMARY)
    display.close()
    display.close()
    text = stream.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") > -1
    assert "\x1b[1;32m24 fragments became 49 files in 3.2 s." in text
    assert visible(text).endswith(
        "\n\n24 fragments became 49 files in 3.2 s.\n\nresults  results/\n"
    )


async def test_a_table_closed_without_its_end_gives_the_cursor_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream(terminal=True)
    display = choose_display("auto", stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(display.run, progress)
        await trio.testing.wait_all_tasks_blocked()
        display.close()
        assert stream.getvalue().endswith("\x1b[?25h")
        nursery.cancel_scope.cancel()


async def test_no_color_means_no_color(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Stream(terminal=True)
    await run_for(1, choose_display("auto", stream), lambda: progress(9, failed=1))
    styles = {
        code
        for codes in re.findall(r"\x1b\[([0-9;]+)m", stream.getvalue())
        for code in codes.split(";")
    }
    assert styles <= {"0", "1", "2"}


async def test_a_terminal_of_ascii_gets_a_table_of_ascii(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream(terminal=True, encoding="ascii")
    await run_for(1, choose_display("auto", stream), lambda: progress(31))
    assert stream.getvalue().isascii()
    assert "======" in stream.getvalue()
    assert "\\" not in stream.getvalue()


# -- which one


@pytest.mark.parametrize(
    ("form", "is_terminal", "term", "chosen"),
    [
        ("auto", True, "xterm", "LiveTable"),
        ("auto", False, "xterm", "Lines"),
        ("auto", True, "dumb", "Lines"),
        ("auto", True, None, "Lines"),
        ("plain", True, "xterm", "Lines"),
        ("json", True, "xterm", "JsonLines"),
    ],
)
def test_the_form_follows_the_terminal(
    form: Form, is_terminal: bool, term: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if term is None:
        monkeypatch.delenv("TERM")
    else:
        monkeypatch.setenv("TERM", term)
    stream = Stream(terminal=is_terminal)
    assert type(choose_display(form, stream)).__name__ == chosen
    assert stream.writes == []


def test_a_terminal_without_rich_gets_lines_and_one_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    stream = Stream(terminal=True)
    assert type(choose_display("auto", stream)).__name__ == "Lines"
    assert stream.getvalue() == "for a live table: pip install 'iterum-sidecar[local]'\n"
    pipe = Stream()
    choose_display("auto", pipe)
    assert pipe.getvalue() == ""


def test_rich_is_imported_only_for_the_table() -> None:
    program = (
        "import sys, iterum_sidecar.local.display as d\n"
        "d.choose_display('auto', sys.stdout), d.choose_display('json', sys.stdout)\n"
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE).returncode == 0


# -- readers that go or sleep


@contextmanager
def open_pipe() -> Iterator[tuple[int, TextIO]]:
    """Make a pipe and yield what reads and what writes."""
    reading, writing = os.pipe()
    try:
        with open(writing, "w", encoding="utf-8") as stream:
            yield reading, stream
    finally:
        os.close(reading)


def read_until(descriptor: int, end: bytes) -> bytes:
    data = b""
    while end not in data:
        data += os.read(descriptor, 65536)
    return data


async def test_a_reader_that_sleeps_does_not_hold_up_the_run() -> None:
    with open_pipe() as (reading, stream):
        display = choose_display("json", stream)
        with trio.fail_after(5):
            for number in range(3):
                display.say("x" * 100_000 + str(number))
            await run_for(0.05, display)
        display.close(0.1)
        display.conclude(SUMMARY)
        lines = read_until(reading, b'"summary"').splitlines()
        display.close()
    assert [line[-3:-2] for line in lines[:3]] == [b"0", b"1", b"2"]


async def test_no_picture_is_drawn_while_the_last_one_has_not_gone_out() -> None:
    with open_pipe() as (reading, stream):
        display = choose_display("json", stream)
        display.say("x" * 200_000)
        numbers = iter(range(10**6))
        display.every = display.first = 0.001
        await run_for(0.2, display, lambda: progress(results_before=next(numbers)))
        display.say("the end")
        data = read_until(reading, b"the end")
        display.close()
    # The plan and the last state.
    assert data.count(b'"images"') == 2


async def test_a_reader_that_has_gone_is_no_error() -> None:
    with open_pipe() as (reading, stream):
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, reading)
        os.close(nowhere)
        display = choose_display("plain", stream)
        display.say("no one reads this")
        display.close()
        assert display._outlet.lost
        await run_for(0.01, display)
        display.conclude(SUMMARY)
        display.close()


def test_a_reader_that_had_gone_before_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def flush() -> None:
        raise BrokenPipeError

    stream = Stream()
    monkeypatch.setattr(stream, "flush", flush)
    choose_display("plain", stream).say("no one reads this")
    assert stream.writes == []


def test_head_sees_its_line_and_no_traceback() -> None:
    program = (
        "import sys, trio\n"
        "from iterum_sidecar.local.display import choose_display\n"
        "async def main():\n"
        "    display = choose_display('plain', sys.stdout)\n"
        "    display.say('first')\n"
        "    display.close()\n"
        "    sys.stdin.read()\n"
        "    for _ in range(100):\n"
        "        display.say('x' * 1000)\n"
        "        display.close()\n"
        "trio.run(main)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_stream_that_someone_made_non_blocking_loses_nothing() -> None:
    with open_pipe() as (reading, stream):
        os.set_blocking(stream.fileno(), False)
        outlet = Outlet(stream)
        outlet.write("x" * 300_000 + "end")
        assert len(read_until(reading, b"end")) == 300_003
        assert outlet.flush(5)


def test_what_was_printed_before_comes_before() -> None:
    with open_pipe() as (reading, stream):
        stream.write("printed\n")
        Outlet(stream).write("told\n")
        assert read_until(reading, b"told\n") == b"printed\ntold\n"


async def test_a_real_terminal_of_sixty_columns() -> None:
    with open_terminal(columns=60) as (leader, stream):
        display = choose_display("auto", stream)
        await run_for(0.05, display, lambda: progress(31))
        display.conclude(replace(SUMMARY, how_to_go_on="words " * 20))
        display.close()
        stream.close()
        lines = on_screen(read_all(leader))
    assert lines[2].startswith("edges x2")
    assert "31 of 62" in lines[2]
    assert "24 fragments became 49 files in 3.2 s." in lines
    assert max(map(len, lines)) < 60


@contextmanager
def open_terminal(columns: int) -> Iterator[tuple[int, TextIO]]:
    """Make a terminal and yield what its owner holds and what a program writes to."""
    leader, follower = pty.openpty()
    try:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with open(follower, "w", encoding="utf-8") as stream:
            yield leader, stream
    finally:
        os.close(leader)


def read_all(terminal: int) -> str:
    data = b""
    # A terminal that no one has open any more ends in this error on Linux.
    with suppress(OSError):
        while piece := os.read(terminal, 65536):
            data += piece
    return data.decode()
