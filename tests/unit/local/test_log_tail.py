from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.local.log_tail import last_lines, with_last_lines

if TYPE_CHECKING:
    from pathlib import Path


def test_the_last_lines_of_a_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert last_lines(log) == [f"line {number}" for number in range(80, 100)]
    assert last_lines(log, count=2) == ["line 98", "line 99"]
    assert last_lines(log, count=0) == []
    assert len(last_lines(log, count=1000)) == 100


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"no end", ["no end"]),
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b" 1%\r 2%\rdone\n", [" 1%", " 2%", "done"]),
        (b"a\tb\xff\xc3\xa9\n", ["a\tb\ufffdé"]),
        (b"\x1b[31mred\x07\x00\x7f\n", [r"\x1b[31mred\x07\x00\x7f"]),
        (
            "\x9b2J\u202eevil\u2028\u2066\x0b\x85".encode(),
            [r"\x9b2J\u202eevil\u2028\u2066\x0b\x85"],
        ),
    ],
)
def test_what_is_written_is_shown_without_harm(
    tmp_path: Path, written: bytes, lines: list[str]
) -> None:
    (tmp_path / "log").write_bytes(written)
    assert last_lines(tmp_path / "log") == lines


def test_only_the_end_of_a_large_file_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write("\nlästly\n".encode())
    assert last_lines(log, count=1) == ["lästly"]
    assert last_lines(log, most_bytes=9) == ["lästly"]
    # A line that is cut: it does not begin within a character.
    assert last_lines(log, most_bytes=6) == ["…stly"]
    assert last_lines(log, most_bytes=0) == []


def test_a_file_that_does_not_exist_has_no_lines_and_one_that_cannot_be_read_is_an_error(
    tmp_path: Path,
) -> None:
    assert last_lines(tmp_path / "none") == []
    with pytest.raises(IsADirectoryError):
        last_lines(tmp_path)


def test_a_message_ends_with_the_last_lines_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert with_last_lines("it ended", log) == f"it ended; it has written nothing to {log}"
    log.write_text("one\ntwo\x1b\nthree\n")
    told = with_last_lines("it ended", log, 2)
    assert told == f"it ended; the last lines of {log}:\n  two\\x1b\n  three"


def test_what_was_written_before_an_offset_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier life\nlast words\n")
    since = log.stat().st_size
    assert last_lines(log, since=since) == []
    with log.open("a") as more:
        more.write("first\nsecond\n")
    assert last_lines(log, since=since) == ["first", "second"]
    assert last_lines(log, since=since, most_bytes=9) == ["…t", "second"][1:]
    log.write_text("cut short\n")
    assert last_lines(log, since=since) == ["cut short"]
