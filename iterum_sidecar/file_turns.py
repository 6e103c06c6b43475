"""The files of many groups (fragments, results), a few at a time for all groups together.

Where many groups are at work each has one file at a time, and needs no task of its own for it: that is most of what a small file would
cost. A group that is alone has several at a time, so that a large one does not take as many round trips as it has files. How many they are
is decided anew with each file, so that what began in a crowd does not go on as if it were one.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import TYPE_CHECKING, Generic, TypeVar, final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["FileTurns"]

FileT = TypeVar("FileT")

#: More groups than this have one file at a time each. If files take long, groups gather until there are as many as files may be; if they do
#: not, nobody gains by several at a time, and each would cost a task.
CROWD = 4
#: Files that are worth a task: to begin and end one costs a fifth of what a small file does.
FILES_FOR_A_TASK = 4


@final
class FileTurns:
    """Turns for about `in_all` files at a time: at most `of_one_group` of a group, and at least one of each."""

    def __init__(self, in_all: int, of_one_group: int) -> None:
        self._in_all = in_all
        self._of_one_group = of_one_group
        self._groups = 0

    async def for_each(
        self,
        files: Iterable[FileT],
        work: Callable[[FileT], Awaitable[None]],
        *,
        refusal: type[Exception],
    ) -> None:
        """Do `work` for every file of a group; the first `refusal` cancels the rest of it and is raised bare.

        Any other error is raised as it is or as a nursery raises it.
        """
        left = deque(files)
        self._groups += 1
        try:
            while left and (len(left) == 1 or self._allowed() == 1):
                await work(left.popleft())
            if left:
                await _Sharing(self._allowed, left, work, refusal).run()
        finally:
            self._groups -= 1

    def _allowed(self) -> int:
        """How many files of one group may be at work now."""
        if self._groups > CROWD:
            return 1
        return max(1, min(self._of_one_group, self._in_all // self._groups))


@final
class _Sharing(Generic[FileT]):
    """The files of one group among as many tasks as are `allowed`."""

    def __init__(
        self,
        allowed: Callable[[], int],
        left: deque[FileT],
        work: Callable[[FileT], Awaitable[None]],
        refusal: type[Exception],
    ) -> None:
        self._allowed = allowed
        self._left = left
        self._work = work
        self._refusal = refusal
        self._refusals: list[Exception] = []
        self._at_work = 0

    async def run(self) -> None:
        """Work on all of them; raises the first refusal."""
        async with trio.open_nursery() as nursery:
            for _ in range(min(self._allowed(), ceil(len(self._left) / FILES_FOR_A_TASK))):
                self._one_more(nursery)
        if self._refusals:
            # Taken out: it refers to this frame, and they would keep each other until the next search for garbage, with all of the group.
            raise self._refusals.pop(0)

    def _one_more(self, nursery: trio.Nursery) -> None:
        self._at_work += 1
        nursery.start_soon(self._take_turns, nursery)

    async def _take_turns(self, nursery: trio.Nursery) -> None:
        left = self._left
        while left and self._at_work <= self._allowed():
            try:
                await self._work(left.popleft())
            except self._refusal as error:
                self._refusals.append(error)
                nursery.cancel_scope.cancel("one of the files is refused")
            if self._at_work < min(self._allowed(), len(left) / FILES_FOR_A_TASK):
                self._one_more(nursery)
        self._at_work -= 1
