from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.local.journal import Delivered, Journal, JournalRefused
from iterum_sidecar.local.state import OutputFolder, open_output, remove_result, synchronise

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- the lock


def test_an_output_folder_is_made_and_locked_until_the_run_is_over(root: Path) -> None:
    with open_output(root / "deeper") as output:
        assert output.root == root / "deeper"
        assert output.state.is_dir()
        with (
            pytest.raises(
                VolumeUnusable, match=rf"in use by another run \(process {os.getpid()}\)"
            ),
            open_output(root / "deeper"),
        ):
            pass
        with open_output(root / "other"):
            pass
    with open_output(root / "deeper"):
        pass


def test_the_lock_is_given_back_when_a_run_fails(root: Path) -> None:
    with pytest.raises(KeyError), open_output(root):
        raise KeyError
    with open_output(root):
        pass


def test_a_file_where_the_output_folder_should_be_is_told(root: Path) -> None:
    root.write_text("mine")
    with (
        pytest.raises(VolumeUnusable, match=r"results cannot be used for results: .*--output"),
        open_output(root),
    ):
        pass
    assert root.read_text() == "mine"


@pytest.mark.parametrize("journal", [None, b""])
def test_results_whose_journal_was_lost_are_not_taken_for_files_of_others(
    root: Path, journal: bytes | None
) -> None:
    write(root / "lineage.jsonl")
    if journal is not None:
        write(root / ".iterum" / "journal.sqlite", journal.decode())
    with (
        pytest.raises(VolumeUnusable, match=r"holds a lineage\.jsonl.*--output"),
        open_output(root),
    ):
        pass


# -- what earlier runs have left


def test_what_a_killed_run_left_half_done_is_removed_and_nothing_else(root: Path) -> None:
    with open_output(root) as output:
        for folder in (output.volumes / "step-1", output.incoming):
            write(folder / "half")
        half = write(output.objects / "bucket" / ".incoming-1")
        kept = [
            write(output.objects / "bucket" / "object"),
            write(output.logs / "run.log"),
            write(output.failed / "step" / "id" / "reason.txt"),
            write(root / "result"),
        ]
        output.clear_remains()
        assert not output.volumes.exists()
        assert not output.incoming.exists()
        assert not half.exists()
        assert all(path.exists() for path in kept)
        output.clear_remains()


def test_to_start_over_is_to_remove_all_that_runs_have_made_and_nothing_else(root: Path) -> None:
    with open_output(root) as output:
        with Journal(output.journal) as journal:
            for name in ("result", "folder/result", "shared/result", "vanished"):
                journal.deliver(Delivered(name, "id", name))
        for name in ("result", "folder/result", "shared/result", "shared/mine", "mine"):
            write(root / name)
        write(output.objects / "bucket" / "object")
        write(output.failed / "step" / "id" / "reason.txt")
        write(output.lineage)
        output.start_over()
        assert not output.takes_over
        left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        assert left == {"mine", "shared/mine", ".iterum/lock"}
        assert not (root / "folder").exists()


def test_to_start_over_beside_a_journal_that_cannot_be_read_is_told_until_all_is_known_again(
    root: Path,
) -> None:
    with open_output(root) as output:
        write(output.journal, "no database" * 1000)
        write(root / "result")
        output.start_over()
        assert (root / "result").exists(), "nobody knows whose it is"
        with Journal(output.journal):
            pass
        assert OutputFolder(root).takes_over
        output.start_over()
        assert OutputFolder(root).takes_over, "what was lost is still lost"
        output.has_taken_over()
        assert not OutputFolder(root).takes_over
        output.has_taken_over()


def test_to_start_over_where_no_run_was_touches_nothing(root: Path) -> None:
    mine = write(root / "failed" / "mine")
    with open_output(root) as output:
        output.start_over()
        assert not output.takes_over
    assert mine.exists()


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("readable", [True, False])
def test_to_start_over_may_be_killed_anywhere(
    root: Path, readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = os.unlink
    left = 0

    def unlink(*arguments: Any, **named: Any) -> None:  # noqa: ANN401 - as os.unlink has it
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        remove(*arguments, **named)

    for kill_after in range(100):
        with open_output(root) as output:
            write_run(output, readable=readable)
            left = kill_after
            with monkeypatch.context() as patched:
                patched.setattr(os, "unlink", unlink)
                try:
                    output.start_over()
                    break
                except Killed:
                    pass
        with open_output(root) as output:
            if not output.journal.exists():
                assert output.takes_over is not readable
                assert (root / "result").exists() is not readable
                with Journal(output.journal):
                    pass
            elif not readable:
                with pytest.raises(JournalRefused):
                    Journal(output.journal)
            output.start_over()
            assert output.takes_over is not readable
            output.has_taken_over()
    assert kill_after >= 4, (
        "the failure, the lineage, the journal and the object were removed one by one"
    )


def write_run(output: OutputFolder, *, readable: bool) -> None:
    """Write what a run leaves."""
    if readable:
        with Journal(output.journal) as journal:
            journal.deliver(Delivered("result", "id", "result"))
    else:
        write(output.journal, "no database" * 1000)
    write(output.root / "result")
    write(output.objects / "bucket" / "object")
    write(output.failed / "step" / "id" / "reason.txt")
    write(output.lineage)


def test_a_result_goes_with_the_folders_that_it_leaves_empty(root: Path) -> None:
    write(root / "a" / "b" / "c")
    write(root / "a" / "d")
    remove_result(root, "a/b/c")
    assert not (root / "a" / "b").exists()
    assert (root / "a" / "d").exists()
    remove_result(root, "a/d")
    remove_result(root, "a/d")
    assert list(root.iterdir()) == []


def test_what_is_kept_to_go_on_is_counted(root: Path) -> None:
    output = OutputFolder(root)
    write(output.objects / "bucket" / "object", "12345")
    write(output.journal, "123")
    write(root / "result", "not of it")
    assert output.kept_bytes() == 8
    synchronise(root)
