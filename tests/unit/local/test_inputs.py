from __future__ import annotations

import os
import socket
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.local.inputs import (
    InputsRefused,
    Scan,
    check_apart,
    check_folder,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def fill(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def names_of(scan: Scan) -> list[str]:
    return [file.name for file in scan]


def problems_of(scan: Scan) -> list[str]:
    with pytest.raises(InputsRefused) as refused:
        list(scan)
    return refused.value.problems


@contextmanager
def as_another_user() -> Iterator[None]:
    """Act as a user whom permissions hold up; root is held up by none."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that other users reach too, which `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


# -- what is scanned, and in which order


def test_files_come_folder_by_folder_sorted_and_a_folders_files_before_its_folders(
    tmp_path: Path,
) -> None:
    fill(tmp_path, "z.txt", "b/2.txt", "b/10.txt", "b/a/deep.txt", "a.txt", "B.txt", "a/é.txt")
    assert names_of(Scan(tmp_path)) == [
        "B.txt",
        "a.txt",
        "z.txt",
        "a/é.txt",
        "b/10.txt",
        "b/2.txt",
        "b/a/deep.txt",
    ]


def test_a_file_is_told_with_its_absolute_path_its_size_and_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "in/cat.jpg")
    os.utime(tmp_path / "in/cat.jpg", ns=(5, 1_234_567_890))
    monkeypatch.chdir(tmp_path)
    (file,) = Scan("in/")
    assert (file.name, file.path) == ("cat.jpg", f"{tmp_path}/in/cat.jpg")
    assert (file.size, file.mtime_ns) == (len("in/cat.jpg"), 1_234_567_890)


def test_hidden_files_and_folders_and_what_is_no_file_are_left_out_and_counted(
    tmp_path: Path,
) -> None:
    fill(tmp_path, "a", ".hidden", ".git/config", "b/.DS_Store")
    os.mkfifo(tmp_path / "pipe")
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "socket"))
        (tmp_path / "null").symlink_to("/dev/null")
        scan = Scan(tmp_path)
        assert names_of(scan) == ["a"]
    assert (scan.hidden, scan.special, scan.unmatched) == (3, 3, 0)
    assert scan.left_out == "left out: 3 that are no regular files (null, pipe, socket)"


def test_what_is_left_out_is_told_with_some_names_that_cannot_steer_a_terminal(
    tmp_path: Path,
) -> None:
    fill(tmp_path, "a")
    os.mkfifo(tmp_path / "pipe\x1b[31m")
    scan = Scan(tmp_path)
    assert names_of(scan) == ["a"]
    assert scan.left_out == "left out: 1 that is no regular file (pipe\\x1b[31m)"
    for number in range(1234):
        os.mkfifo(tmp_path / f"{number:04}")
    assert names_of(scan) == ["a"]
    assert scan.left_out == "left out: 1,235 that are no regular files (0000, 0001, 0002, …)"


def test_nothing_is_told_where_nothing_is_left_out(tmp_path: Path) -> None:
    scan = Scan(fill(tmp_path, "a", ".b"), "a")
    assert names_of(scan) == ["a"]
    assert scan.left_out == ""


def test_counters_begin_again_with_each_iteration(tmp_path: Path) -> None:
    scan = Scan(fill(tmp_path, "a", ".b"))
    assert names_of(scan) == names_of(scan)
    assert scan.hidden == 1


def test_links_are_followed_and_a_link_back_up_is_not(tmp_path: Path) -> None:
    fill(tmp_path, "in/a/x", "elsewhere/y", "elsewhere/more/z")
    (tmp_path / "in/linked").symlink_to("../elsewhere")
    (tmp_path / "in/file").symlink_to("../elsewhere/y")
    (tmp_path / "in/a/up").symlink_to("..")
    (tmp_path / "elsewhere/more/itself").symlink_to(".")
    scan = Scan(tmp_path / "in")
    assert names_of(scan) == ["file", "a/x", "linked/y", "linked/more/z"]
    assert scan.loops == 2


def test_what_vanishes_meanwhile_is_skipped(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", "c", "folder/x", "other/y")
    scan = iter(Scan(tmp_path))
    assert next(scan).name == "a"
    (tmp_path / "b").unlink()
    (tmp_path / "folder/x").unlink()
    (tmp_path / "folder").rmdir()
    assert [file.name for file in scan] == ["c", "other/y"]


# -- patterns


NAMES = ["a.jpg", "b.JPG", "x/c.jpg", "x/y/d.jpg", "x/y/z/e.png", "x1/f.jpg", "x/[1].txt"]


@pytest.mark.parametrize(
    ("pattern", "fitting"),
    [
        ("*.jpg", ["a.jpg", "x/c.jpg", "x1/f.jpg", "x/y/d.jpg"]),
        ("?.JPG", ["b.JPG"]),
        ("[!a-c].*", ["x1/f.jpg", "x/y/d.jpg", "x/y/z/e.png"]),
        ("[[]1].txt", ["x/[1].txt"]),
        ("/*.jpg", ["a.jpg"]),
        ("./*.jpg", ["a.jpg"]),
        ("x/*.jpg", ["x/c.jpg"]),
        ("x*/*.jpg", ["x/c.jpg", "x1/f.jpg"]),
        ("x/**/*.jpg", ["x/c.jpg", "x/y/d.jpg"]),
        ("**/y/*.jpg", ["x/y/d.jpg"]),
        ("**/y/**", ["x/y/d.jpg", "x/y/z/e.png"]),
        ("**/*.jpg", ["a.jpg", "x/c.jpg", "x1/f.jpg", "x/y/d.jpg"]),
        ("**/**/a.jpg", ["a.jpg"]),
        ("x/y/", ["x/y/d.jpg", "x/y/z/e.png"]),
        ("y/*", []),
    ],
)
def test_a_pattern_leaves_out_what_does_not_fit(
    tmp_path: Path, pattern: str, fitting: list[str]
) -> None:
    scan = Scan(fill(tmp_path, *NAMES), pattern)
    assert sorted(names_of(scan)) == sorted(fitting)
    assert scan.unmatched == len(NAMES) - len(fitting)


def test_a_pattern_of_many_stars_is_answered_at_once(tmp_path: Path) -> None:
    scan = Scan(fill(tmp_path, "/".join(["a"] * 60)), "/".join(["**", "a"] * 29) + "/**/b")
    assert names_of(scan) == []


@pytest.mark.parametrize("pattern", ["", "/", "//"])
def test_an_empty_pattern_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InputsRefused, match=r"--match .* fits no file; give a pattern"):
        Scan(tmp_path, pattern)


# -- what is refused


def test_everything_that_is_wrong_is_told_at_once_after_the_good_files(tmp_path: Path) -> None:
    fill(tmp_path, "good")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).touch()
    deep = "/".join(["f" * 240] * 4)
    fill(tmp_path, f"{deep}/x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    seen: list[str] = []
    with pytest.raises(InputsRefused) as refused:
        seen.extend(file.name for file in Scan(tmp_path))
    assert seen == ["good"]
    told = refused.value.problems
    assert len(told) == 4
    assert told[0].startswith(f"{tmp_path}/caf\\xe9.txt: its name is not UTF-8; rename it")
    assert "/circle: the link leads nowhere: Too many levels of symbolic links" in told[1]
    assert "/dangling: the link leads nowhere: No such file or directory; mend it" in told[2]
    assert "has 965 bytes and may have 947; rename it" in told[3]
    assert str(refused.value).startswith("4 problems with the input:\n  ")


def test_a_name_that_does_not_fit_the_pattern_may_be_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).touch()
    assert names_of(Scan(tmp_path, "*.jpg")) == ["a.jpg"]


def test_unreadable_files_and_folders_are_refused(open_to_all: Path) -> None:
    root = fill(open_to_all / "in", "a", "secret.txt", "closed/x")
    (root / "secret.txt").chmod(0)
    (root / "closed").chmod(0)
    with as_another_user():
        told = problems_of(Scan(root))
    (root / "closed").chmod(0o755)
    assert [each.partition(":")[0] for each in told] == [f"{root}/secret.txt", f"{root}/closed"]
    assert all("Permission denied; make it readable for you" in each for each in told)


def test_a_link_to_the_results_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "in/a", "out/r/x")
    (tmp_path / "in/results").symlink_to("../out")
    (tmp_path / "in/some").symlink_to("../out/r")
    (tmp_path / "in/around").symlink_to("..")
    told = problems_of(Scan(tmp_path / "in", output=tmp_path / "out"))
    assert [each.partition(":")[0] for each in told] == [
        f"{tmp_path}/in/results",
        f"{tmp_path}/in/some",
        f"{tmp_path}/in/around/out",
    ]
    assert "would become inputs; take it away, or choose another --output" in told[0]


def test_only_the_first_problems_are_spelled_out() -> None:
    text = str(InputsRefused([f"file {number}" for number in range(1_030)]))
    assert text.startswith("1,030 problems with the input:\n  file 0\n  file 1\n")
    assert text.endswith("\n  file 19\n  … and 1,010 more")
    assert str(InputsRefused(["one alone"])) == "one alone"


def test_a_name_is_shown_without_anything_that_a_terminal_would_obey() -> None:
    assert shown("/in/caf\udce9 \x1b[31m\n") == "/in/caf\\xe9 \\x1b[31m\\n"
    assert shown("/in/café") == "/in/café"


# -- the folders themselves


def test_a_folder_that_is_not_there_is_none_or_is_closed_is_refused_in_one_line(
    open_to_all: Path,
) -> None:
    fill(open_to_all, "file")
    (open_to_all / "closed").mkdir(mode=0)
    for name, reason in [
        ("nowhere", "there is no such folder; check --input"),
        ("file/x", "cannot be looked at: Not a directory"),
        ("file", "is no folder; give the folder"),
        ("closed", "the folder cannot be read: Permission denied"),
        ("nul\0", "cannot be looked at: embedded null byte"),
    ]:
        with as_another_user(), pytest.raises(InputsRefused, match=reason) as refused:
            check_folder(open_to_all / name)
        assert len(refused.value.problems) == 1
    check_folder(open_to_all)
    with pytest.raises(InputsRefused, match="there is no such folder"):
        list(Scan(open_to_all / "nowhere"))


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("in", "in"),
        ("in", "in/"),
        ("in", "in/results/of/today"),
        ("in", "link"),
        ("in", "link/results"),
        ("link", "in/results"),
        ("in", "out/../in/x"),
        ("out/logs", "out"),
        ("out/failed/abc", "out"),
        ("out/.iterum", "out/"),
        ("out/in", "out"),
    ],
)
def test_results_that_would_become_inputs_are_refused(
    tmp_path: Path, source: str, output: str
) -> None:
    fill(tmp_path, "in/a", "out/in/a", "out/logs/x", "out/failed/abc/x", "out/.iterum/x")
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(InputsRefused, match=r"; choose an") as refused:
        check_apart(f"{tmp_path}/{source}", f"{tmp_path}/{output}")
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(
    ("source", "output"),
    [("in", "in2"), ("in", "out"), ("in/link", "in2")],
)
def test_folders_beside_each_other_are_fine(tmp_path: Path, source: str, output: str) -> None:
    fill(tmp_path, "in/a", "in2/b", "out/in/c")
    (tmp_path / "in/link").symlink_to("../out/in")
    check_apart(tmp_path / source, tmp_path / output)
