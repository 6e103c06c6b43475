"""The file of a journal: how it is opened and checked, what may be relied on after a crash, and what is said when it fails.

One SQLite database in WAL mode, written by one process. Events are written in the order in which they happen and
committed a few times a second; whatever a crash cuts off is an end of that order.

Nothing is synchronised to the disk while a run goes on: a killed process loses nothing by that, a machine that goes down may. So a run notes under which boot
of the machine it writes, on the disk, and a clean end, which synchronises, takes the note away.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iterum_sidecar.exit_codes import VolumeUnusable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, Self

__all__ = ["JournalFile", "JournalRefused"]

#: Raised when the tables change; a journal of another format is told, not guessed at.
FORMAT: Final = "3"

_NO_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_TABLES: Final = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE input (
    name TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, content TEXT NOT NULL,
    trusted INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE fragment (
    key INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    id TEXT NOT NULL UNIQUE,
    producer TEXT NOT NULL,
    made_by TEXT NOT NULL,
    channel TEXT NOT NULL,
    body BLOB NOT NULL,
    gathered TEXT,
    live INTEGER NOT NULL,
    state INTEGER NOT NULL,
    done_by TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT ''
);
CREATE INDEX queue ON fragment (channel, number);
CREATE TABLE origin (
    predecessor INTEGER NOT NULL, fragment INTEGER NOT NULL, PRIMARY KEY (predecessor, fragment)
) WITHOUT ROWID;
CREATE INDEX ancestry ON origin (fragment);
CREATE TABLE delivered (
    name TEXT PRIMARY KEY, fragment TEXT NOT NULL, wanted TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX delivery ON delivered (fragment);
CREATE TABLE step (
    made_by TEXT PRIMARY KEY, complete INTEGER NOT NULL, gathers INTEGER NOT NULL, ancestry TEXT NOT NULL
) WITHOUT ROWID;
"""

#: The keys of the fragments that the plan has found to be of this run. `live` follows it at the plan's end, where it differs: to
#: take the mark of each fragment away and set it again would write the whole journal anew in a run that has nothing to do.
#: Eight bytes a fragment, so it is kept in memory.
_FOUND: Final = "CREATE TEMP TABLE found (key INTEGER PRIMARY KEY)"


class JournalRefused(Exception):
    """The journal cannot be used: damaged, of another version, or not to be written."""


class JournalFile:
    """A database that its owner speaks SQL to. Use as a context manager; leaving commits.

    It may be used in any thread, in one at a time.
    """

    def __init__(self, path: Path, *, trusted: bool = True) -> None:
        """Open the journal, making it if it is not there; one that is not to be `trusted` may be of a run that the machine went down in.

        Raises:
            JournalRefused: with what is wrong with it and what to do.
            VolumeUnusable: it cannot be written, here as in all that follows.
        """
        self.path = path
        self._changed = False
        self._failure: Exception | None = None
        with self._told():
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with self._told():
                self._open(trusted=trusted)
        except BaseException:
            self._database.close()
            raise

    def _open(self, *, trusted: bool) -> None:
        execute = self._database.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = OFF")
        execute("PRAGMA temp_store = MEMORY")
        execute(_FOUND)
        if execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            self._make()
        self._check(trusted=trusted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if self._failure is None:
                self.commit()
        finally:
            self._database.close()

    # -- writing

    def commit(self) -> None:
        """Make everything that was told so far outlive this process."""
        if self._changed:
            with self._told():
                self._database.execute("COMMIT")
            self._changed = False

    def begins(self) -> None:
        """Note on the disk, before anything else is written, that a run writes under this boot of the machine; best in a thread."""
        self._write_to_disk("INSERT OR REPLACE INTO about VALUES ('unsynchronised', ?)", (_boot(),))

    def was_synchronised(self) -> None:
        """Note, on the disk too, that everything of this run is there."""
        self._write_to_disk("DELETE FROM about WHERE name = 'unsynchronised'")

    # -- SQL

    def change(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """Carry out a statement of the plan; returns how many rows it changed."""
        return self._write(statement, parameters).rowcount

    def number(self, query: str, parameters: Sequence[Any] = ()) -> int:
        """Return what a query with one number for an answer, as `SELECT count(*)`, finds."""
        (found,) = self._read_one(query, parameters) or (0,)
        return int(found)

    # -- within

    def _write(self, statement: str, parameters: Iterable[Any] = ()) -> sqlite3.Cursor:
        # Several times for each fragment, so without a context manager, which costs as much as the statement.
        self._check_failure()
        try:
            if not self._changed:
                self._database.execute("BEGIN")
                self._changed = True
            return self._database.execute(statement, tuple(parameters))
        except sqlite3.DatabaseError as error:
            raise self._fail(error) from None

    def _write_to_disk(self, statement: str, parameters: Iterable[Any] = ()) -> None:
        """Carry out a statement; what it did, and all that was told before, is on the disk when this returns."""
        self.commit()
        with self._told():
            self._database.execute("PRAGMA synchronous = FULL")
        self._write(statement, parameters)
        self.commit()
        with self._told():
            # Into the file itself: of the log beside it, which is written over and over, nobody knows what is left.
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._database.execute("PRAGMA synchronous = OFF")

    def _read(self, statement: str, parameters: Sequence[Any] = ()) -> Iterator[Any]:
        with self._told():
            yield from self._database.execute(statement, parameters)

    def _read_one(self, statement: str, parameters: Sequence[Any]) -> tuple[Any, ...] | None:
        self._check_failure()
        try:
            row: tuple[Any, ...] | None = self._database.execute(statement, parameters).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._fail(error) from None
        return row

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: sqlite3.DatabaseError) -> Exception:
        self._failure = self._explain(error)
        return self._failure

    def _make(self) -> None:
        self._database.executescript(
            f"BEGIN; {_TABLES} INSERT INTO about VALUES ('format', '{FORMAT}'); COMMIT;"
        )

    def _check(self, *, trusted: bool) -> None:
        about = dict(self._database.execute("SELECT name, value FROM about"))
        if about.get("format") != FORMAT:
            raise JournalRefused(
                f"{self.path} is the journal of another version of this program; --fresh starts over"
            )
        if trusted and about.get("unsynchronised", _boot()) != _boot():
            raise JournalRefused(
                f"the machine went down while the run that wrote {self.path} was going on, and what it had finished may not"
                " be on the disk; --fresh starts over"
            )
        problems = [row[0] for row in self._database.execute("PRAGMA quick_check(1)")]
        if problems != ["ok"]:
            raise JournalRefused(f"{self.path} is damaged ({problems[0]}); --fresh starts over")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what is wrong with the database in words that help, and from then on nothing else.

        SQLite takes a whole transaction back by itself when the disk is full; what was written after that would be an end of the
        events without what came before it.
        """
        self._check_failure()
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._fail(error) from None

    def _explain(self, error: sqlite3.DatabaseError) -> Exception:
        if error.sqlite_errorcode & 0xFF in _NO_ROOM:
            return VolumeUnusable(
                f"{self.path} cannot be written: {error}; make room, and run again"
            )
        if isinstance(error, sqlite3.OperationalError):
            return JournalRefused(
                f"{self.path} cannot be used: {error}; run again when that is mended, or start over with --fresh"
            )
        return JournalRefused(f"{self.path} is damaged ({error}); --fresh starts over")


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
