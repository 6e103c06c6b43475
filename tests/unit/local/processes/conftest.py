from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.local.processes.places import Pipe, Place, a_line

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A directory for the children, and their log."""
    (tmp_path / "steps").mkdir()
    return Place(tmp_path / "steps")


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """A named pipe that programs can write to."""
    pipe = Pipe(tmp_path / "pipe")
    pipe.open()
    yield pipe
    pipe.close()


@pytest.fixture
def closed_pipe(tmp_path: Path) -> Iterator[Pipe]:
    """A named pipe that keeps programs waiting until it is opened."""
    pipe = Pipe(tmp_path / "closed-pipe")
    yield pipe
    pipe.close()


@pytest.fixture
def line() -> Iterator[socket.socket]:
    """A line to a subreaper."""
    with a_line() as line:
        yield line
