"""Throwing dead letters away, at their owner's word, and not before what is to be kept of them is safe."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TextIO

from iterum_sidecar.dead_letters.choosing import by_kind, what_stays
from iterum_sidecar.dead_letters.errors import NotDone
from iterum_sidecar.dead_letters.letter import in_full, read_letter
from iterum_sidecar.dead_letters.reading import IN_DOUBT, without_body
from iterum_sidecar.exit_codes import ExitCode
from iterum_sidecar.local.progress import count, printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from iterum_sidecar import amqp
    from iterum_sidecar.dead_letters.choosing import Choosing
    from iterum_sidecar.dead_letters.letter import Letter
    from iterum_sidecar.dead_letters.listing import Form, Listing
    from iterum_sidecar.dead_letters.reading import Reading

__all__ = ["Discarding"]


class _FileUnusable(NotDone):
    """What is to be discarded cannot be saved."""

    exit_code = ExitCode.VOLUME


class Discarding:
    """Throws letters away, and knows how far it is.

    `save` is where they are written first, a line of JSON each; None: nowhere. `agrees` is asked once, with what is about to be
    done. With `instead` nothing is written, asked or thrown away, and what would be is put down there.
    """

    changes: Final = True

    def __init__(
        self,
        form: Form,
        queue: str,
        *,
        save: Path | None,
        agrees: Callable[[str], Awaitable[bool]],
        instead: Listing | None = None,
    ) -> None:
        self._form = form
        self._queue = queue
        self._save = save
        self._agrees = agrees
        self._instead = instead
        self._reading: Reading | None = None
        self.gone: Counter[str] = Counter()
        """Those that are thrown away, or would be, by kind."""

    async def run(self, reading: Reading, choosing: Choosing) -> None:
        """Go through the queue, save what is chosen, ask, and throw it away.

        Raises:
            NotDone: nothing is chosen, it cannot be saved, or the answer is no; nothing is thrown away.
            ServiceLost: the broker was lost.
        """
        self._reading = reading
        chosen: list[tuple[str, amqp.Delivery]] = []
        with self._kept() as file:
            async with aclosing(reading.letters()) as letters:
                async for delivery in letters:
                    letter = read_letter(delivery)
                    if choosing.takes(letter):
                        chosen.append((letter.kind, without_body(delivery)))
                        self._put_down(file, letter, delivery)
            choosing.conclude()
            if file is not None:
                _make_safe(file)
            if self._instead is None:
                await self._ask(Counter(kind for kind, _ in chosen), reading)
        for kind, delivery in chosen:
            self.gone[kind] += 1
            if self._instead is None:
                reading.acknowledge(delivery)

    def _put_down(self, file: IO[str] | None, letter: Letter, delivery: amqp.Delivery) -> None:
        if self._instead is not None:
            self._instead.add(letter)
        elif file is not None:
            # ASCII, so that nothing of it steers a terminal.
            file.write(json.dumps(letter.fields() | in_full(delivery)) + "\n")

    async def _ask(self, kinds: Counter[str], reading: Reading) -> None:
        what = (
            f"{count(kinds.total(), 'dead letter')} of {reading.given:,} in {printable(reading.queue)}:"
            f" {by_kind(kinds)}"
        )
        if not await self._agrees(what):
            raise NotDone("nothing was discarded")

    @contextmanager
    def _kept(self) -> Iterator[IO[str] | None]:
        """Open the file for what is to be discarded, and remove it if that does not come to be."""
        if self._save is None or self._instead is not None:
            yield None
            return
        try:
            file = self._save.open("x", encoding="utf-8")
        except FileExistsError:
            raise _FileUnusable(f"{self._save} is there already; name another file") from None
        except (OSError, ValueError) as error:
            raise _unusable(self._save, error) from None
        is_needed = False
        with file:
            try:
                yield file
                is_needed = True
            except OSError as error:
                raise _unusable(self._save, error) from None
            finally:
                if not is_needed:
                    with suppress(OSError):
                        self._save.unlink()

    def tell(self, output: TextIO, choosing: Choosing) -> None:
        """Write what was done, or would be, in a sentence or two, or as one object of JSON; nothing where nothing was begun."""
        if self._reading is None:
            return
        seen = self._reading.count
        if self._form == "json":
            fields = {
                "queue": self._queue,
                "total": seen,
                "discarded": self.gone.total(),
                "by_kind": dict(self.gone),
                "in_doubt": self._unheard,
            }
            if self._instead is not None:
                self._instead.write_json(output, {"dry_run": True} | fields)
            else:
                output.write(f"{json.dumps(fields)}\n")
        elif self.gone:
            if self._instead is not None:
                self._instead.write_table(output)
                output.write("\n")
            output.write(f"{self._told(seen)}\n")

    def _told(self, seen: int) -> str:
        total = self.gone.total()
        would_be = "would be" if self._instead else "is" if total == 1 else "are"
        saved = f", and saved in {self._save}" if self._save and not self._instead else ""
        return (
            f"{count(total, 'dead letter')} {would_be} discarded{saved}: {by_kind(self.gone)}\n"
            f"{what_stays(total, seen, self._queue)}"
        )

    @property
    def problems(self) -> list[str]:
        """What of the request may not have been done."""
        return [IN_DOUBT.format(f"{self._unheard:,} of them")] if self._unheard else []

    @property
    def _unheard(self) -> int:
        return self._reading.unheard if self._reading is not None else 0


def _make_safe(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())
    directory = os.open(Path(file.name).parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unusable(path: Path, error: Exception) -> _FileUnusable:
    reason = error.strerror if isinstance(error, OSError) else "not a path"
    return _FileUnusable(f"{path} cannot be written: {reason}; nothing was discarded")
