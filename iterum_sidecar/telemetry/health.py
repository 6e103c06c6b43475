"""What of a sidecar's world is there: a snapshot, for whoever asks."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

__all__ = ["Health", "State", "Word"]

#: What a sidecar is doing, in one word. The last three are said when it has ended.
Word: TypeAlias = Literal["starting", "ready", "waiting", "draining", "done", "stopped", "failed"]


class State(NamedTuple):
    """A word, and what there is to say beside it: what is waited for, or why it has ended."""

    word: Word
    detail: str = ""


class Health(Struct, frozen=True, kw_only=True):
    """Each part of what a sidecar needs to work, and whether it is there."""

    listening: bool
    """Both sockets of the transformation are open."""
    broker: bool
    """It is connected, and we are in the line of the input queue."""
    store: bool
    """Its last answer was one that we can work with."""
    transformation: bool
    """It has a connection to the input socket."""
    draining: bool
    """Nothing new is taken: told to stop, or the transformation has been told that nothing more comes."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of what is not there."""
        parts = {
            "the sockets": self.listening,
            "the broker": self.broker,
            "the store": self.store,
            "the transformation": self.transformation,
        }
        return tuple(name for name, there in parts.items() if not there)

    @property
    def ready(self) -> bool:
        """Whether fragments can be worked."""
        return not self.draining and not self.missing

    @property
    def state(self) -> State:
        """The same in one word, as it is told to whoever does not want to know more."""
        if not self.listening:
            return State("starting")
        if self.draining:
            return State("draining")
        if self.missing:
            return State("waiting", ", ".join(self.missing))
        return State("ready")
