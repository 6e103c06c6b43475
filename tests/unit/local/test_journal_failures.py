"""A journal that cannot be written says so, and from then on writes nothing: an end of the events is lost, never a middle."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.local.journal import Journal, JournalRefused, JournalState

if TYPE_CHECKING:
    from pathlib import Path


def publish(journal: Journal, number: int) -> None:
    journal.publish(
        f"{number:064d}",
        producer="s",
        made_by="f",
        channel="out",
        body=b"x" * 3000,
        predecessors=[],
        gathered=None,
    )


def publish_many(journal: Journal) -> None:
    for number in range(100):
        publish(journal, number)


def test_after_a_full_disk_nothing_is_written_any_more(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.add_first("a" * 64, "in", b"{}")
    journal.commit()
    # As a full disk does it: the database may not grow any more.
    (pages,) = journal._database.execute("PRAGMA page_count").fetchone()
    journal._database.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(VolumeUnusable, match="make room, and run again"):
        publish_many(journal)
    with pytest.raises(VolumeUnusable):
        journal.finish("a" * 64, "f")
    with pytest.raises(VolumeUnusable):
        journal.commit()
    journal.__exit__()
    with Journal(path) as again:
        assert again.count("in", JournalState.WAITING) == 1
        assert again.count("in", JournalState.FINISHED) == 0


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(JournalRefused, match=r"is damaged .*--fresh starts over"):
        Journal(path)


def test_a_journal_of_another_version_is_told(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path):
        pass
    with sqlite3.connect(path) as database:
        database.execute("UPDATE about SET value = '0' WHERE name = 'format'")
    database.close()
    with pytest.raises(JournalRefused, match="another version"):
        Journal(path)


def test_what_was_written_while_the_machine_went_down_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.begins()
    with Journal(path):
        pass
    monkeypatch.setattr("iterum_sidecar.local.journal_file._boot", lambda: "another boot")
    with pytest.raises(JournalRefused, match="machine went down"):
        Journal(path)
    with Journal(path, trusted=False):
        pass
