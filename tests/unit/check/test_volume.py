from __future__ import annotations

import os
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.check import volume as volume_area
from iterum_sidecar.check.findings import Findings, Outcome
from iterum_sidecar.check.volume import look_at_volume

from .environment import by_subject, failed, readable

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume; its path is short enough for a socket's."""
    return tmp_path_factory.mktemp("v")


async def look(root: Path, **variables: str) -> Findings:
    findings = Findings("volume")
    await look_at_volume(
        readable(DATA_VOLUME_PATH=str(root), **variables), seconds=5, findings=findings
    )
    return findings


async def test_a_volume_that_can_be_used_is_left_as_it_was(root: Path) -> None:
    findings = await look(root)
    assert by_subject(findings, Outcome.OK).keys() == by_subject(findings).keys()
    assert by_subject(findings).keys() == {
        "volume",
        "input socket",
        "output socket",
        "writing",
        "space",
        "parts",
        "left-overs",
    }
    assert list(root.iterdir()) == []


async def test_one_that_is_not_there_is_all_that_is_told(root: Path) -> None:
    findings = await look(root / "nowhere")
    assert [finding.subject for finding in findings.all] == ["volume"]
    assert "No such file" in failed(findings)["volume"].detail


async def test_a_file_is_no_volume(root: Path) -> None:
    (root / "file").touch()
    assert failed(await look(root / "file")).keys() == {"volume"}


async def test_a_living_socket_is_another_sidecars_and_is_not_connected_to(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(root / "in.sock"))
        living.listen()
        living.setblocking(False)
        findings = await look(root)
        with pytest.raises(BlockingIOError):
            living.accept()
    assert failed(findings).keys() == {"input socket"}
    assert "end the other sidecar" in failed(findings)["input socket"].remedy
    assert "left-overs" not in by_subject(findings), "they are the other sidecar's"


async def test_a_dead_socket_is_no_failure(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(root / "in.sock"))
    findings = await look(root)
    assert failed(findings) == {}
    assert "`run` replaces it" in by_subject(findings)["input socket"].detail


async def test_a_foreign_file_in_a_sockets_place_fails(root: Path) -> None:
    (root / "out.sock").touch()
    assert failed(await look(root)).keys() == {"output socket"}


async def test_sockets_that_are_wrong_are_not_looked_at_and_the_rest_is(root: Path) -> None:
    findings = await look(root, TRANSFORMATION_STEP_INPUT="a-socket")
    assert by_subject(findings, Outcome.UNKNOWN).keys() == {"sockets"}
    assert "writing" in by_subject(findings, Outcome.OK)


async def test_left_overs_are_counted(root: Path) -> None:
    left = root / ".iterum-sidecar" / "fragments" / "1"
    left.mkdir(parents=True)
    (left / "a").write_bytes(b"x" * 2048)
    (left / "b").touch()
    found = by_subject(await look(root))["left-overs"]
    assert found.detail == "2 files of an earlier life, 2.0 KiB; `run` removes them"


async def test_left_overs_are_counted_however_deep_they_lie(root: Path) -> None:
    left = root / ".iterum-sidecar"
    left.mkdir()
    (left / "state").touch()
    for _ in range(sys.getrecursionlimit()):
        left /= "a"
        left.mkdir()
    try:
        found = by_subject(await look(root))["left-overs"]
    finally:
        os.removedirs(left)  # level by level, which pytest's own cleaning is not
    assert found.detail == "1 files of an earlier life, 0 B; `run` removes them"


async def test_left_overs_that_cannot_be_removed_fail(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = root / ".iterum-sidecar" / "fragments"
    left.mkdir(parents=True)
    (left / "a").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert failed(await look(root)).keys() == {"left-overs"}


@pytest.mark.parametrize("name", [".iterum-sidecar", "config"])
async def test_a_link_or_file_in_a_directorys_place_fails(root: Path, name: str) -> None:
    (root / name).symlink_to("/tmp")
    findings = await look(root)
    assert failed(findings).keys() == {"parts"}
    assert failed(findings)["parts"].detail == f"{name} is no directory"


async def test_a_part_on_another_file_system_is_a_warning(root: Path) -> None:
    # /proc is another file system everywhere.
    findings = Findings("volume")
    found = readable(DATA_VOLUME_PATH="/", ITERUM_CONFIG_PATH="proc")
    volume_area._look_at_parts(found, os.stat("/").st_dev, findings)
    assert by_subject(findings, Outcome.WARNING).keys() == {"parts"}


@pytest.mark.parametrize(
    ("free", "inodes", "outcome"),
    [(10, 5, Outcome.WARNING), (10**9, 0, Outcome.FAILED), (10**9, 5, Outcome.OK)],
)
async def test_space(
    root: Path, monkeypatch: pytest.MonkeyPatch, free: int, inodes: int, outcome: Outcome
) -> None:
    found = SimpleNamespace(
        f_bavail=free, f_blocks=10**9, f_frsize=1024, f_files=10, f_favail=inodes
    )
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert by_subject(await look(root))["space"].outcome is outcome


@pytest.mark.parametrize(
    ("number", "remedy"),
    [("EROFS", "readOnly"), ("ENOSPC", "make room"), ("EACCES", "let user"), ("EIO", "the mount")],
)
async def test_each_reason_not_to_take_a_file_has_its_remedy(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: str, remedy: str
) -> None:
    import errno

    code = getattr(errno, number)

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    findings = Findings("volume")
    volume_area._look_at_writing(str(root), findings)
    assert remedy in failed(findings)["writing"].remedy


async def test_a_file_system_that_hangs_is_not_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def hang(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio.to_thread, "run_sync", hang)
    findings = await look(root)
    assert trio.current_time() == pytest.approx(5)
    assert "within 5 s" in failed(findings)["volume"].detail
