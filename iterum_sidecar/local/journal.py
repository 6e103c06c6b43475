"""The journal of a local run: every fragment that was made, where it came from, and whether it is finished.

It is also the queue: what waits for a step is what the journal has for its channel and not as finished, so memory holds a page of it,
however long the queue is. Events are written in the order in which they happen (`journal_file.py`), so a fragment is never
finished there without the outputs that were made of it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from iterum_sidecar.local.journal_file import JournalFile, JournalRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "Delivered",
    "Journal",
    "JournalRefused",
    "JournalState",
    "Published",
    "StepRecord",
    "Waiting",
]


class JournalState(IntEnum):
    """How far the consumer of a fragment has got with it."""

    WAITING = 0
    FINISHED = 1
    FAILED = 2


class Waiting(NamedTuple):
    """A fragment that waits for its consumer."""

    number: int
    body: bytes
    attempts: int


class Published(NamedTuple):
    """What the journal made of an output: its number if it is to be queued, and whether it was never there before."""

    number: int | None
    new: bool


class StepRecord(NamedTuple):
    """A step as its last run left it."""

    complete: bool
    """Whether it had got all of its input, and had finished."""
    gathers: bool
    """Whether it is known to make results of several fragments."""
    ancestry: str
    """What its gathered results depended on besides their predecessors."""


class Delivered(NamedTuple):
    """A result in the output folder: its name there, the fragment that it belongs to, the name that it should have had."""

    name: str
    fragment_id: str
    wanted: str


class Journal(JournalFile):
    """The journal in one file."""

    def __init__(self, path: Path, *, trusted: bool = True) -> None:
        """Open the journal, as `JournalFile` does."""
        super().__init__(path, trusted=trusted)
        self.combined = ""
        """The channel whose fragments are the results, once the plan has told it."""
        (last,) = self._read_one("SELECT max(number) FROM fragment", ()) or (None,)
        self._last_number = last or 0
        self._last_key: int | None = None

    # -- the input folder (`inputs.HashCache`)

    def lookup(self, name: str, size: int, mtime_ns: int) -> str | None:
        """Return the content hash of an input file that has not changed since it was read, or None."""
        row = self._read_one(
            "SELECT content FROM input WHERE name = ? AND size = ? AND mtime_ns = ? AND trusted",
            (name, size, mtime_ns),
        )
        return None if row is None else str(row[0])

    def remember(self, name: str, size: int, mtime_ns: int, content_hash: str) -> None:
        """Note the content hash of a file as it is with this size and time."""
        self.note_input(name, size, mtime_ns, content_hash, trusted=True)

    def note_input(
        self, name: str, size: int, mtime_ns: int, content_hash: str, *, trusted: bool = False
    ) -> None:
        """Note how an input file looks in this run; one that is noted as trusted already keeps that."""
        self._write(
            "INSERT INTO input VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (name) DO UPDATE SET"
            " trusted = ?5 OR (trusted AND size = ?2 AND mtime_ns = ?3), size = ?2, mtime_ns = ?3, content = ?4"
            " WHERE trusted < ?5 OR size <> ?2 OR mtime_ns <> ?3 OR content <> ?4",
            (name, size, mtime_ns, content_hash, trusted),
        )

    def input_stamp(self, name: str) -> tuple[int, int] | None:
        """Return the size and time (ns) that an input file had when its content was looked at."""
        row = self._read_one("SELECT size, mtime_ns FROM input WHERE name = ?", (name,))
        return None if row is None else (row[0], row[1])

    # -- fragments

    def add_first(self, fragment_id: str, channel: str, body: bytes) -> None:
        """Note a fragment of the fragmenter, for the plan to find it as one of this run."""
        row = self._read_one("SELECT key, channel FROM fragment WHERE id = ?", (fragment_id,))
        if row is None:
            self._insert(fragment_id, "", "", channel, body, None)
            key = self._last_key
        else:
            key, former_channel = row
            if former_channel != channel:
                self._write(
                    "UPDATE fragment SET channel = ?, state = 0 WHERE key = ?", (channel, key)
                )
        self._write("INSERT OR IGNORE INTO found VALUES (?)", (key,))

    def publish(
        self,
        fragment_id: str,
        *,
        producer: str,
        made_by: str,
        channel: str,
        body: bytes,
        predecessors: Sequence[str],
        gathered: str | None,
    ) -> Published:
        """Note an output; one that was there already is not queued a second time.

        `made_by` is the fingerprint of its step, `gathered` what a result of several predecessors depends on besides them.
        """
        row = self._read_one("SELECT key, live FROM fragment WHERE id = ?", (fragment_id,))
        if row is None:
            number = self._insert(fragment_id, producer, made_by, channel, body, gathered)
            for predecessor in predecessors:
                self._write(
                    "INSERT OR IGNORE INTO origin SELECT key, ? FROM fragment WHERE id = ?",
                    (self._last_key, predecessor),
                )
            return Published(number, new=True)
        key, live = row
        if live:
            return Published(None, new=False)
        # What came of it has been set aside as not of this run, so it is worked again.
        self._last_number += 1
        self._write(
            "UPDATE fragment SET live = 1, state = 0, number = ?, body = ?, gathered = ? WHERE key = ?",
            (self._last_number, body, gathered, key),
        )
        return Published(self._last_number, new=False)

    def finish(self, fragment_id: str, done_by: str) -> None:
        """Its consumer, whose fingerprint is `done_by`, has finished with a fragment."""
        self._write(
            "UPDATE fragment SET state = 1, done_by = ?, attempts = 0, reason = '' WHERE id = ?",
            (done_by, fragment_id),
        )

    def fail(self, fragment_id: str, done_by: str, reason: str) -> None:
        """Its consumer cannot finish a fragment; the next run tries it again."""
        self._write(
            "UPDATE fragment SET state = 2, done_by = ?, attempts = 0, reason = ? WHERE id = ?",
            (done_by, reason, fragment_id),
        )

    def strike(self, fragment_id: str, attempts: int) -> None:
        """A transformation has died on a fragment `attempts` times."""
        self._write("UPDATE fragment SET attempts = ? WHERE id = ?", (attempts, fragment_id))

    def waiting(self, channel: str, after: int, limit: int) -> list[Waiting]:
        """Return the next `limit` fragments that wait in a channel, those with numbers above `after`, in order."""
        return [
            Waiting(*row)
            for row in self._read(
                "SELECT number, body, attempts FROM fragment WHERE channel = ? AND number > ?"
                " AND live AND state = 0 ORDER BY number LIMIT ?",
                (channel, after, limit),
            )
        ]

    def count(self, channel: str, state: JournalState) -> int:
        """Return how many fragments of this run a channel has in a state."""
        return self.number(
            "SELECT count(*) FROM fragment WHERE channel = ? AND live AND state = ?",
            (channel, int(state)),
        )

    def failed(self) -> Iterator[str]:
        """Yield the ID of each fragment that its consumer could not finish."""
        return (row[0] for row in self._read("SELECT id FROM fragment WHERE state = 2"))

    def lineage(self) -> Iterator[tuple[str, bytes]]:
        """Yield the producer (empty for the fragmenter) and the description of each fragment of this run, oldest first."""
        return self._read("SELECT producer, body FROM fragment WHERE live ORDER BY number")

    def first_of(self, fragment_id: str, limit: int) -> Iterator[bytes]:
        """Yield the descriptions of the first fragments that a fragment came of, `limit` at most."""
        rows = self._read(
            "WITH RECURSIVE above(key) AS (SELECT key FROM fragment WHERE id = ?"
            " UNION SELECT o.predecessor FROM above JOIN origin o ON o.fragment = above.key)"
            " SELECT f.body FROM above JOIN fragment f ON f.key = above.key WHERE f.producer = '' LIMIT ?",
            (fragment_id, limit),
        )
        return (row[0] for row in rows)

    def left_behind(self) -> Iterator[tuple[str, bytes]]:
        """Yield the same of the fragments that are not of this run."""
        return self._read("SELECT producer, body FROM fragment WHERE NOT live ORDER BY number")

    def forget_left_behind(self) -> None:
        """Remove the fragments that are not of this run."""
        self._write(
            "DELETE FROM origin WHERE fragment IN (SELECT key FROM fragment WHERE NOT live)"
            " OR predecessor IN (SELECT key FROM fragment WHERE NOT live)"
        )
        self._write("DELETE FROM fragment WHERE NOT live")

    # -- results in the output folder

    def deliver(self, delivered: Delivered) -> None:
        """Note a result that is in the output folder; the fragment that had its name before is not delivered by that."""
        self._write(
            "UPDATE fragment SET state = 0 WHERE id = (SELECT fragment FROM delivered WHERE name = ?) AND id <> ?",
            (delivered.name, delivered.fragment_id),
        )
        self._write("INSERT OR REPLACE INTO delivered VALUES (?, ?, ?)", delivered)

    def owner(self, name: str) -> tuple[str, bool] | None:
        """Return the fragment that a name in the output folder belongs to, and whether that is a result of this run."""
        row = self._read_one(
            "SELECT d.fragment, coalesce(f.live AND f.channel = ?, 0) FROM delivered d"
            " LEFT JOIN fragment f ON f.id = d.fragment WHERE d.name = ?",
            (self.combined, name),
        )
        return None if row is None else (str(row[0]), bool(row[1]))

    def is_folder(self, name: str) -> bool:
        """Whether anything was delivered below a name."""
        # The next character after the slash ends what begins with it.
        below = (f"{name}/", f"{name}0")
        return (
            self._read_one("SELECT 1 FROM delivered WHERE name > ? AND name < ? LIMIT 1", below)
            is not None
        )

    def delivered_of(self, fragment_id: str) -> list[Delivered]:
        """Return what was delivered of a fragment."""
        return [
            Delivered(*row)
            for row in self._read("SELECT * FROM delivered WHERE fragment = ?", (fragment_id,))
        ]

    def deliveries(self, *, live: bool) -> Iterator[Delivered]:
        """Yield the results in the output folder that are of this run, or those that are not."""
        rows = self._read(
            "SELECT d.* FROM delivered d LEFT JOIN fragment f ON f.id = d.fragment"
            " WHERE coalesce(f.live AND f.channel = ?, 0) = ? ORDER BY d.name",
            (self.combined, int(live)),
        )
        return (Delivered(*row) for row in rows)

    def forget_delivery(self, name: str) -> None:
        """A result is no longer in the output folder."""
        self._write("DELETE FROM delivered WHERE name = ?", (name,))

    # -- for the plan, which speaks SQL of its own

    def step(self, made_by: str) -> StepRecord:
        """Return what is known of a step from earlier runs in which it was as it is now, by its fingerprint."""
        row = self._read_one(
            "SELECT complete, gathers, ancestry FROM step WHERE made_by = ?", (made_by,)
        )
        return StepRecord(False, False, "") if row is None else StepRecord(*row)

    def note_step(self, made_by: str, record: StepRecord) -> None:
        """Note how far a step has got."""
        self._write("INSERT OR REPLACE INTO step VALUES (?, ?, ?, ?)", (made_by, *record))

    # -- within

    def _insert(
        self,
        fragment_id: str,
        producer: str,
        made_by: str,
        channel: str,
        body: bytes,
        gathered: str | None,
    ) -> int:
        self._last_number += 1
        cursor = self._write(
            "INSERT INTO fragment (number, id, producer, made_by, channel, body, gathered, live, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, 1, 0)",
            (self._last_number, fragment_id, producer, made_by, channel, body, gathered),
        )
        self._last_key = cursor.lastrowid
        return self._last_number
