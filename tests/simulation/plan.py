"""What one run is made of, all of it drawn from one seed: the input, the step, the pods, and the faults."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from random import Random
from typing import Literal, TypeAlias, get_args

from tests.simulation.names import SIDE, fragment_id

__all__ = [
    "Fault",
    "FaultKind",
    "Fragment",
    "Message",
    "Nature",
    "Plan",
    "Result",
    "Shape",
    "draw_plan",
]

#: What a fragment is: the transformation dies on `poison`, hangs on a `hanging` one, says that it failed on a `failing` one, makes of an `escaping` one a
#: result outside the volume; of a `missing` one an object is not there.
Nature: TypeAlias = Literal["good", "poison", "hanging", "failing", "escaping", "missing"]

#: What the step makes: of each fragment one result, several, one of some and none of others; or one of several fragments.
Shape: TypeAlias = Literal["copy", "split", "filter", "gather"]

FaultKind: TypeAlias = Literal[
    # the broker and the way to it
    "reset", "half open", "closed by broker", "broker away", "broker forgets", "line cancelled", "queue deleted", "lag", "blocked", "nacks",
    # the store
    "store slow", "store away", "store refuses",
    # the transformation
    "death", "pair lost", "breach", "half a frame",
    # the sidecar and its pod
    "sidecar killed", "pod killed", "drain", "abort",
]  # fmt: skip

#: Of a run, the attempts that a fragment has.
ATTEMPTS = 3
#: Seconds that a fragment has where there is a limit: much longer than any takes.
FRAGMENT_TIMEOUT = 3.0
#: About as many events belong to one fragment, where nothing goes wrong.
EVENTS_OF_A_FRAGMENT = 14


@dataclass(frozen=True, slots=True)
class Result:
    """One result that the step makes: the output channel, and names and contents of its files."""

    channel: str | None
    files: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Fragment:
    """One input fragment. Two of one number and other `edition`s have one ID and other files: a conflict."""

    number: int
    edition: int
    files: tuple[tuple[str, bytes], ...]
    nature: Nature
    work: float
    """Seconds that the step works on it."""
    results: int
    """How many results it has, in a step that makes any number of them."""

    @property
    def is_late(self) -> bool:
        """Whether a step dies on it, if it does, when its results have been sent already."""
        return self.results == 3

    @property
    def own_id(self) -> str:
        return fragment_id(self.number)

    @property
    def name(self) -> str:
        return f"f{self.number}"

    def key(self, name: str) -> str:
        """Return the key of the object that holds a file of it."""
        return f"iterum_data/{self.number}/{self.edition}/{name}"

    def body(self) -> bytes:
        """Return its description on the input queue."""
        files = [
            {"name": name, "path": self.key(name), "bucket": "source"} for name, _ in self.files
        ]
        metadata = {"fragment_id": self.own_id, "predecessors": None}
        return json.dumps({"files": files, "metadata": metadata}).encode()


@dataclass(frozen=True, slots=True)
class Message:
    """A message on the input queue, and when it is put there; `fragment` is None for what is no description of one."""

    at: float
    body: bytes
    name: str
    fragment: Fragment | None


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong when so many events have happened."""

    kind: FaultKind
    moment: int
    pod: int
    """Whose, where it is one pod's."""
    seconds: float
    """How long it lasts, or how long a pod takes to come back."""
    notice: float
    """How long the other side takes to notice it."""
    number: int
    """Which process, connection or queue, counted around; or how many."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run."""

    seed: int
    shape: Shape
    batch: int
    """How many fragments a gathering step makes one result of."""
    says_gathers: bool
    processes: int
    pairs: int
    """How many pairs of connections each process has."""
    restart: float
    """Seconds until a process that has ended is started again."""
    messages: tuple[Message, ...]
    finished_at: float
    prefetch: int
    depth: int
    pods: int
    native: bool
    """Whether the sidecar is started again alone, on its volume and beside its transformation; else a new pod comes."""
    kill_on_error: bool
    fragment_timeout: float
    volume_budget: int
    notice: float
    """Seconds within which the broker notices the loss of a connection."""
    return_after: float
    """Seconds within which it then puts back what was not acknowledged."""
    lag: float
    few_descriptors: bool
    """Whether results are held by links."""
    faults: tuple[Fault, ...]

    def lines(self) -> list[str]:
        """Return it as text."""
        told = [
            f"  {name}: {value}"
            for name, value in zip(self.__slots__, astuple(self), strict=True)
            if name not in {"messages", "faults"}
        ]
        told += [
            f"  {message.name} at {message.at:.3f}: "
            + (
                "no description of a fragment"
                if message.fragment is None
                else f"{message.fragment.nature}, {len(message.fragment.files)} files, {message.fragment.work} s,"
                f" {message.fragment.results} results"
            )
            for message in self.messages
        ]
        return told + [f"  {fault}" for fault in self.faults]

    def fragments(self) -> list[Fragment]:
        """Return every fragment that comes, each edition once."""
        found = (message.fragment for message in self.messages)
        return list(dict.fromkeys(each for each in found if each is not None))

    def results_of(self, fragment: Fragment) -> list[Result]:
        """Return what the step makes of a fragment, in order; not for a step that gathers."""
        number = {"copy": 1, "split": fragment.results, "filter": fragment.number % 2}[self.shape]
        return [
            Result(
                SIDE if self.shape == "split" and index % 3 == 2 else None,
                tuple(
                    (f"out-{name}", b"%d of " % index + content.upper())
                    for name, content in fragment.files
                ),
            )
            for index in range(number)
        ]

    @staticmethod
    def gathered(fragments: list[Fragment]) -> Result:
        """Return what a gathering step makes of some fragments."""
        ordered = sorted(fragments, key=lambda each: (each.own_id, each.edition))
        content = b"+".join(content for each in ordered for _, content in each.files)
        return Result(None, (("batch", content),))


def draw_plan(seed: int) -> Plan:
    """Draw a run."""
    random = Random(seed)
    chance = random.random
    shape: Shape = random.choice(("copy", "copy", "split", "filter", "gather"))
    messages = _draw_messages(random, shape)
    processes = random.choice((1, 1, 1, 1, 2, 3))
    pairs = random.choice((1, 1, 1, 2, 3))
    batch = random.choice((2, 3))
    prefetch = random.choice((0, 0, 1, 2, 4))
    if shape == "gather" and prefetch:
        # Less could never complete a batch: whoever sets it is told so, and nothing goes on.
        # Two messages of one ID are two in the window.
        twice = len(messages) - len({message.body for message in messages})
        prefetch = max(prefetch, batch * processes * pairs + twice)
    native = chance() < 0.5
    last = max((message.at for message in messages), default=0.0)
    return Plan(
        seed=seed,
        shape=shape,
        batch=batch,
        says_gathers=chance() < 0.5,
        processes=processes,
        pairs=pairs,
        restart=random.choice((0.1, 0.5, 3.0)),
        messages=tuple(messages),
        finished_at=last + random.choice((0.0, 0.0, 1.0, 3.0)),
        prefetch=prefetch,
        depth=random.choice((1, 1, 1, 3)),
        pods=1 if chance() < 0.85 else 2,
        native=native,
        kill_on_error=not native or chance() < 0.3,
        fragment_timeout=FRAGMENT_TIMEOUT if _hangs(messages) or chance() < 0.1 else 0.0,
        # Some sixty bytes are the files of three or four fragments.
        volume_budget=60 if chance() < 0.15 else 0,
        notice=random.choice((0.5, 2.0, 4.0)),
        return_after=random.choice((0.0, 0.0, 0.8)),
        lag=random.choice((0.0, 0.0, 0.0, 0.0, 0.0, 0.002, 0.05)),
        few_descriptors=chance() < 0.1,
        faults=tuple(_draw_faults(random, len(messages))),
    )


def _hangs(messages: list[Message]) -> bool:
    return any(each.fragment and each.fragment.nature == "hanging" for each in messages)


def _draw_messages(random: Random, shape: Shape) -> list[Message]:
    spread = random.choice((0.0, 0.0, 0.0, 3.0))
    bad_ones = random.random() < 0.3
    natures: tuple[Nature, ...] = ("good",)
    if bad_ones:
        natures = ("good", "good", "good", *get_args(Nature))
    messages = []
    for number in range(random.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 10))):
        fragment = _draw_fragment(random, number, 0, random.choice(natures))
        messages.append(_message(random, spread, fragment))
        if random.random() < 0.06:
            messages.append(_message(random, spread, fragment))
        if bad_ones and random.random() < 0.06 and shape != "gather":
            messages.append(_message(random, spread, _draw_fragment(random, number, 1, "good")))
        if bad_ones and random.random() < 0.1:
            messages.append(_malformed(random, spread, number))
    messages.sort(key=lambda message: message.at)
    return messages


def _draw_fragment(random: Random, number: int, edition: int, nature: Nature) -> Fragment:
    files = tuple(
        (f"{edition}-{index}.txt", b"content %d.%d.%d" % (number, edition, index))
        for index in range(random.choice((1, 1, 1, 2)))
    )
    work = random.choice((0.0, 0.0, 0.01, 0.1, 0.5))
    return Fragment(number, edition, files, nature, work, random.choice((1, 2, 3)))


def _message(random: Random, spread: float, fragment: Fragment) -> Message:
    return Message(random.random() * spread, fragment.body(), fragment.name, fragment)


def _malformed(random: Random, spread: float, number: int) -> Message:
    body = random.choice(
        (
            b"not json %d" % number,
            b'{"files":[],"metadata":{"fragment_id":"%d"}}' % number,
            b'{"files":[{"name":"../%d","path":"a","bucket":"b"}],"metadata":{"fragment_id":"%s"}}'
            % (number, b"x" * 64),
        )
    )
    return Message(random.random() * spread, body, f"bad{number}", None)


def _draw_faults(random: Random, messages: int) -> list[Fault]:
    kinds = get_args(FaultKind)
    last = EVENTS_OF_A_FRAGMENT * messages + 20
    return [
        Fault(
            kind=random.choice(kinds),
            moment=random.randint(1, last),
            pod=random.randrange(2),
            seconds=random.choice((0.0, 0.2, 1.0, 4.0)) * random.random(),
            notice=random.choice((0.0, 0.0, 0.5, 1.0)) * random.random(),
            number=random.randrange(12),
        )
        for _ in range(random.choice((0, 1, 1, 2, 2, 3, 4, 6)))
    ]
