"""`docs/getting-started.md` says what happens: its commands are run, and what they print is held against the page."""

from __future__ import annotations

import re
from pathlib import Path

from .walkthrough import Command, commands_of, normalised, run_all, with_outputs

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_prints_what_the_page_says(tmp_path: Path) -> None:
    commands = commands_of(PAGE)
    outputs = run_all(commands, tmp_path)
    assert len(outputs) == len(commands) > 20
    for command, output in zip(commands, outputs, strict=True):
        assert normalised(output) == normalised(command.output), command.script


def test_every_place_in_the_repository_that_the_page_names_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert links
    for link in links:
        assert (ROOT / "docs" / link).exists(), link


def test_a_page_is_read_and_written_as_it_was() -> None:
    page = (
        "text\n\n```console\n$ a\n1\n\n2\n\n$ b <<E\n> x\n>\n> E\n$ c\n```\n\n```text\n$ d\n```\n"
    )
    commands = commands_of(page)
    assert commands == [
        Command(("$ a",), "1\n\n2"),
        Command(("$ b <<E", "> x", ">", "> E"), ""),
        Command(("$ c",), ""),
    ]
    assert commands[1].script == "b <<E\nx\n\nE"
    assert with_outputs(page, [command.output for command in commands]) == page


def test_commands_share_a_shell_and_see_the_last_exit_code(tmp_path: Path) -> None:
    lines = ["$ cd /", "$ pwd", "$ false", "$ echo $?", "$ echo x >&2; printf y"]
    commands = [Command((line,), "") for line in lines]
    assert run_all(commands, tmp_path) == ["", "/", "", "1", "x\ny"]


def test_times_sizes_and_progress_are_all_that_may_differ() -> None:
    one = "3 files in 0.2 s.\n       0 s  shout ended\nkept  113 KiB"
    assert normalised(one) == normalised("3 files in 12 s.\nkept  4.5 MiB")
    assert normalised(one) != normalised("4 files in 0.2 s.\nkept  113 KiB")
