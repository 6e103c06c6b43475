"""A page whose commands are run: blocks marked `console`, in one shell, from the first to the last, in an empty folder.

    python -m tests.unit.scaffold.walkthrough docs/getting-started.md

writes what they say now into the page. `normalised` leaves out what differs from run to run: times, sizes, and how far a run was
when it said so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Command", "commands_of", "normalised", "run_all", "with_outputs"]

#: What the folder is called in the page.
HOME = "/home/you"
SECONDS = 120

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "\x01"


@dataclass(frozen=True, slots=True)
class Command:
    """A command as the page has it, and what the page says that it prints."""

    lines: tuple[str, ...]
    output: str

    @property
    def script(self) -> str:
        """The command as a shell takes it."""
        first, *rest = self.lines
        return "\n".join([first.removeprefix("$ "), *(line[2:] for line in rest)])


def commands_of(page: str) -> list[Command]:
    """Return the commands of a page: a line after `$ `, and those after `> ` that go on with it."""
    return [command for block in _BLOCK.finditer(page) for command in _commands_in(block[1])]


def _commands_in(block: str) -> list[Command]:
    found: list[tuple[list[str], list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(([line], []))
        elif line.startswith("> ") or line == ">":
            found[-1][0].append(line)
        else:
            found[-1][1].append(line)
    return [Command(tuple(lines), "\n".join(output).strip("\n")) for lines, output in found]


def run_all(commands: list[Command], directory: Path) -> list[str]:
    """Run commands one after the other in one shell, and return what each prints, errors with the rest."""
    # The mark is printed between a command and the next, which is to see the exit code of the one before.
    mark = f"\n__code=$?; printf '\\n{_MARK}\\n'; (exit $__code)\n"
    script = mark.join(["true", *(command.script for command in commands)]) + mark
    programs = os.path.dirname(sys.executable)
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(directory),
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "80",
    }
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    said = ended.stdout.replace(str(directory), HOME).split(f"\n{_MARK}\n")
    return [each.strip("\n") for each in said[1 : len(commands) + 1]]


def normalised(output: str) -> str:
    """Return what a command printed without what differs from run to run."""
    # The lines that tell how far a run is, at times of their own.
    lines = [line for line in output.splitlines() if not re.match(r" +\d+ s  ", line)]
    text = "\n".join(lines)
    text = re.sub(r"\b\d+(\.\d+)? s\b", "# s", text)
    text = re.sub(r"\b\d+(\.\d+)? (B|KiB|MiB)\b", "# bytes", text)
    return re.sub(r'("seconds"|"state_bytes"): [\d.]+', r"\1: #", text)


def with_outputs(page: str, outputs: list[str]) -> str:
    """Return the page with these outputs in the place of what it says."""
    left = iter(outputs)

    def block(match: re.Match[str]) -> str:
        lines = []
        for command in _commands_in(match[1]):
            output = next(left)
            lines += [*command.lines, *([output, ""] if output else [])]
        return "```console\n" + "\n".join(lines).rstrip("\n") + "\n```"

    return _BLOCK.sub(block, page)


def _main() -> None:
    path = Path(sys.argv[1])
    page = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        outputs = run_all(commands_of(page), Path(directory).resolve())
    path.write_text(with_outputs(page, outputs), encoding="utf-8")


if __name__ == "__main__":
    _main()
