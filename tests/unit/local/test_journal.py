from __future__ import annotations

import gc
import shutil
import sqlite3
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.local import journal_file
from iterum_sidecar.local.journal import (
    Delivered,
    Journal,
    JournalRefused,
    JournalState,
    Published,
    StepRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as opened:
        yield opened


def publish(journal: Journal, name: str, *predecessors: str, channel: str = "out") -> Published:
    return journal.publish(
        name,
        producer="step",
        made_by="print",
        channel=channel,
        body=name.encode(),
        predecessors=predecessors,
        gathered=None,
    )


def waiting(journal: Journal, channel: str = "out", after: int = 0, limit: int = 100) -> list[str]:
    return [row.body.decode() for row in journal.waiting(channel, after, limit)]


def killed(journal: Journal) -> None:
    """End as a killed process does: what was not committed is lost."""
    journal._database.close()


# -- the queue


def test_what_waits_comes_in_the_order_of_its_publishing_a_page_at_a_time(journal: Journal) -> None:
    names = [f"{number * 7 % 10}" for number in range(10)]
    for name in names:
        publish(journal, name)
        publish(journal, f"other {name}", channel="other")
    found: list[str] = []
    after = 0
    while page := journal.waiting("out", after, 3):
        assert len(page) <= 3
        found += [row.body.decode() for row in page]
        after = page[-1].number
    assert found == names


def test_what_is_finished_or_has_failed_waits_no_more(journal: Journal) -> None:
    for name in "abc":
        publish(journal, name)
    journal.finish("a", "print")
    journal.fail("b", "print", "too large")
    assert waiting(journal) == ["c"]
    assert [journal.count("out", state) for state in JournalState] == [1, 1, 1]
    assert list(journal.failed()) == ["b"]


def test_an_output_that_is_published_again_is_not_queued_again(journal: Journal) -> None:
    first = publish(journal, "a")
    assert first.new
    assert first.number is not None
    assert publish(journal, "a") == Published(None, new=False)
    assert waiting(journal) == ["a"]
    journal.finish("a", "print")
    assert publish(journal, "a") == Published(None, new=False)
    assert waiting(journal) == []


def test_an_output_of_an_earlier_run_is_revived_behind_all_others(journal: Journal) -> None:
    publish(journal, "old")
    journal.finish("old", "print")
    journal.change("UPDATE fragment SET live = 0")
    publish(journal, "new")
    revived = publish(journal, "old")
    assert not revived.new
    assert revived.number is not None
    assert waiting(journal) == ["new", "old"]


def test_a_first_fragment_whose_channel_has_another_name_now_is_worked_again(
    journal: Journal,
) -> None:
    journal.add_first("a", "before", b"a")
    journal.finish("a", "print")
    journal.add_first("a", "before", b"a")
    assert waiting(journal, "before") == []
    journal.add_first("a", "after", b"a")
    assert waiting(journal, "after") == ["a"]


def test_attempts_are_kept_until_the_fragment_is_finished(journal: Journal) -> None:
    publish(journal, "a")
    journal.strike("a", 2)
    (row,) = journal.waiting("out", 0, 1)
    assert row.attempts == 2
    journal.finish("a", "print")
    journal.change("UPDATE fragment SET state = 0")
    (row,) = journal.waiting("out", 0, 1)
    assert row.attempts == 0


def test_what_is_left_behind_can_be_forgotten(journal: Journal) -> None:
    publish(journal, "a")
    publish(journal, "b", "a")
    journal.change("UPDATE fragment SET live = 0 WHERE id = 'b'")
    assert list(journal.left_behind()) == [("step", b"b")]
    assert list(journal.lineage()) == [("step", b"a")]
    journal.forget_left_behind()
    assert list(journal.left_behind()) == []
    assert publish(journal, "b", "a").new


# -- what outlives the process


def test_what_was_committed_outlives_a_kill_and_what_came_later_is_lost(path: Path) -> None:
    journal = Journal(path)
    publish(journal, "a")
    journal.note_step("step", StepRecord(True, True, "ancestry"))
    journal.commit()
    publish(journal, "b", "a")
    journal.finish("a", "print")
    killed(journal)
    with Journal(path) as again:
        assert waiting(again) == ["a"]
        assert again.step("step") == StepRecord(True, True, "ancestry")
        assert again.step("unknown") == StepRecord(False, False, "")


def test_leaving_commits_and_numbers_go_on(path: Path) -> None:
    with Journal(path) as journal:
        first = publish(journal, "a").number
    with Journal(path) as journal:
        second = publish(journal, "b").number
        assert waiting(journal) == ["a", "b"]
    assert first is not None
    assert second is not None
    assert second > first


# -- what cannot be used


def test_a_file_that_is_no_database_is_told(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(JournalRefused, match=r"damaged.*--fresh"):
        Journal(path)


def test_a_journal_of_which_a_part_was_overwritten_is_told(path: Path) -> None:
    with Journal(path) as journal:
        for number in range(500):
            publish(journal, str(number))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff" * 4096 + data[len(data) // 2 + 4096 :])
    with pytest.raises(JournalRefused, match=r"(?s)damaged.*--fresh"):
        Journal(path)


def test_a_journal_of_another_format_is_told(path: Path) -> None:
    with Journal(path):
        pass
    database = sqlite3.connect(path)
    database.execute("UPDATE about SET value = '0' WHERE name = 'format'")
    database.commit()
    database.close()
    with pytest.raises(JournalRefused, match=r"another version.*--fresh"):
        Journal(path)


def test_a_database_of_someone_else_is_told_with_what_helps(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE mine (it TEXT)")
    database.commit()
    database.close()
    with pytest.raises(JournalRefused, match="--fresh"):
        Journal(path)


def test_a_place_where_no_file_can_be_is_told(path: Path) -> None:
    path.mkdir()
    with pytest.raises(JournalRefused, match="cannot be used"):
        Journal(path)


def test_a_run_that_the_machine_went_down_in_is_not_trusted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = path.with_name("boot_id")
    monkeypatch.setattr(journal_file, "_BOOT_ID", boot)
    boot.write_text("first\n")
    with Journal(path) as journal:
        journal.begins()
    with Journal(path):
        pass
    boot.write_text("second\n")
    with pytest.raises(JournalRefused, match=r"the machine went down.*--fresh"):
        Journal(path)
    gc.collect()
    with Journal(path, trusted=False) as journal:
        journal.was_synchronised()
    with Journal(path):
        pass


@pytest.mark.parametrize("note", [Journal.begins, Journal.was_synchronised])
def test_what_is_noted_of_the_disk_is_there_before_a_run_goes_on(
    path: Path, note: Callable[[Journal], None]
) -> None:
    with Journal(path) as journal:
        said: list[str] = []
        journal._database.set_trace_callback(said.append)
        note(journal)
        journal.note_input("name", 1, 1, "content")
        journal.commit()
    # What is committed while `synchronous` is FULL is on the disk, and a checkpoint is the same for the file itself.
    assert [text for text in said if text.startswith(("PRAGMA", "COMMIT"))] == [
        "PRAGMA synchronous = FULL",
        "COMMIT",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA synchronous = OFF",
        "COMMIT",
    ]


def test_a_run_that_the_machine_went_down_in_is_known_by_the_file_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file, "_boot", lambda: "first")
    journal = Journal(path)
    journal.begins()
    publish(journal, "a")
    journal.commit()
    # The log beside it is not there: what was written last is what goes first.
    left = path.with_name("left.sqlite")
    shutil.copy(path, left)
    killed(journal)
    monkeypatch.setattr(journal_file, "_boot", lambda: "second")
    with pytest.raises(JournalRefused, match="machine went down"):
        Journal(left)


def test_a_journal_that_was_refused_is_closed(path: Path) -> None:
    with Journal(path) as journal:
        journal.change("UPDATE about SET value = '0' WHERE name = 'format'")
    # What was raised is held, so that nothing is closed by being forgotten.
    with pytest.raises(JournalRefused) as _refused:
        Journal(path)
    database = sqlite3.connect(path, timeout=0)
    assert database.execute("SELECT value FROM about WHERE name = 'format'").fetchone() == ("0",)
    database.close()


# -- the input folder


def test_a_hash_is_known_for_a_file_of_that_size_and_time_only(journal: Journal) -> None:
    journal.remember("a", 1, 2, "hash")
    assert journal.lookup("a", 1, 2) == "hash"
    assert journal.lookup("a", 2, 2) is None
    assert journal.lookup("a", 1, 3) is None
    assert journal.lookup("b", 1, 2) is None


def test_a_file_that_was_seen_too_soon_after_its_change_is_read_again_next_time(
    journal: Journal,
) -> None:
    journal.note_input("a", 1, 2, "hash")
    assert journal.lookup("a", 1, 2) is None
    assert journal.input_stamp("a") == (1, 2)
    journal.remember("a", 1, 2, "hash")
    journal.note_input("a", 1, 2, "hash")
    assert journal.lookup("a", 1, 2) == "hash"
    journal.note_input("a", 1, 3, "other")
    assert journal.lookup("a", 1, 3) is None
    assert journal.input_stamp("a") == (1, 3)


def test_a_file_that_is_as_it_was_is_not_written_again(journal: Journal) -> None:
    journal.remember("a", 1, 2, "hash")
    written = journal._database.total_changes
    journal.remember("a", 1, 2, "hash")
    journal.note_input("a", 1, 2, "hash")
    assert journal._database.total_changes == written


# -- results


def test_a_result_is_of_this_run_while_its_fragment_is_and_its_channel_is_the_combiners(
    journal: Journal,
) -> None:
    journal.combined = "out"
    for fragment, channel in [("now", "out"), ("before", "out"), ("between", "c1")]:
        publish(journal, fragment, channel=channel)
        journal.deliver(Delivered(fragment, fragment, fragment))
    journal.deliver(Delivered("forgotten", "gone", "forgotten"))
    journal.change("UPDATE fragment SET live = 0 WHERE id = 'before'")
    assert [each.name for each in journal.deliveries(live=True)] == ["now"]
    stale = [each.name for each in journal.deliveries(live=False)]
    assert stale == ["before", "between", "forgotten"]
    assert journal.owner("now") == ("now", True)
    assert journal.owner("before") == ("before", False)
    assert journal.owner("forgotten") == ("gone", False)
    assert journal.owner("never") is None
    journal.forget_delivery("now")
    assert journal.owner("now") is None


@pytest.mark.parametrize(
    ("delivered", "folder"),
    [("a/b", True), ("a/b/c", True), ("a", False), ("a0", False), ("a.b", False), ("a-/b", False)],
)
def test_a_folder_is_what_something_was_delivered_below(
    journal: Journal, delivered: str, folder: bool
) -> None:
    journal.deliver(Delivered(delivered, "a", delivered))
    assert journal.is_folder("a") is folder


# -- what something came of


def test_the_first_fragments_of_a_result_are_found_through_all_steps(journal: Journal) -> None:
    for name in ("a", "b", "c"):
        journal.add_first(name, "first", name.encode())
    publish(journal, "a1", "a")
    publish(journal, "b1", "b")
    publish(journal, "both", "a1", "b1")
    assert sorted(journal.first_of("both", 10)) == [b"a", b"b"]
    assert len(list(journal.first_of("both", 1))) == 1
    assert list(journal.first_of("c", 10)) == [b"c"]
    assert list(journal.first_of("unknown", 10)) == []
