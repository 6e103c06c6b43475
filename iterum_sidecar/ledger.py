"""What is in flight, what each of it waits for, and what is to be done when nothing is left to wait for.

The ledger is plain data: no I/O, no clock, no task. Stages tell it what has happened and it answers with the
entries whose `verdict` has fallen by that; whoever asked passes those on to the stage that carries verdicts out (`stages/settle.py`).
Everything that the project promises about loss stands on a few rules, all of which are kept here:

- An entry is acknowledged only when it is done and no output of it is pending: every result that named it has been
  uploaded, published and confirmed, its lineage too.
- An entry has one hand-out at a time. When that ends without a done (its connection closed), the results of it are first
  finished, then it is handed out again, and ordinals begin again, so that work done twice has the same identities.
- A done counts for the hand-out that is out. After a frame that could not be read nobody knows what was lost, so every hand-out that is
  out is void: its done ends it and does not count. A void hand-out whose own done was the frame that was lost is given up at last
  (`give_up_void`), and the entry then owes one done: the next does not count either, whoever meant it.
- Blame is for deaths alone. It is counted in the message itself (verdict STRIKE), so that it outlives this program.
- What was settled and comes again is not worked again. A dead letter may be, after someone has put it back: so of dead letters, and of those
  that were struck, the *edition* is remembered (`editions.py`), which is another for each message of that ID that somebody has published.
  So what is struck is published as an edition that this sidecar has never seen.

The file is long because all that can happen to an entry is in it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from iterum_sidecar.entries import Admission, DeadLetterKind, Entry, Output, State, Verdict
from iterum_sidecar.fencing import Fence
from iterum_sidecar.ordinals import Ordinals

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from iterum_sidecar.identity import OutputIdentity

__all__ = ["REMEMBERED", "Ledger"]

#: How many settled IDs are recognised when they come again (design, promise 1).
REMEMBERED = 100_000
#: Of how many struck fragments it is remembered what had come of them.
STRUCK = 1024
_SCATTERED = "what came of it came by several output connections; results and dones of a fragment must come by one"

DeliveryT = TypeVar("DeliveryT")
WorkT = TypeVar("WorkT")
T = TypeVar("T")
U = TypeVar("U")


class Ledger(Generic[DeliveryT, WorkT]):
    """The fragments in flight of one step."""

    def __init__(self, identity: OutputIdentity, *, attempts_allowed: int) -> None:
        self._identity = identity
        self._attempts_allowed = attempts_allowed
        self._entries: dict[str, Entry[DeliveryT, WorkT]] = {}
        self._open: dict[Entry[DeliveryT, WorkT], None] = {}
        self._ordinals = Ordinals()
        self._fence: Fence[DeliveryT, WorkT] = Fence()
        self._pending_outputs: dict[str, Output[DeliveryT, WorkT]] = {}
        self._settled: OrderedDict[str, int] = OrderedDict()
        """The IDs of what was acknowledged, with the hashes of the signatures."""
        self._dismissed: OrderedDict[Hashable, None] = OrderedDict()
        self._struck_outputs: OrderedDict[str, set[str]] = OrderedDict()
        """What had come of those that were struck, until they come again; another sidecar may be who gets them."""
        self.dead_letters_in_a_row = 0
        """Verdicts DEAD_LETTER since the last ACKNOWLEDGE."""

    def __len__(self) -> int:
        """How many entries are open: admitted, and their verdict not carried out."""
        return len(self._open)

    def __iter__(self) -> Iterator[Entry[DeliveryT, WorkT]]:
        return iter(tuple(self._open))

    def in_flight(self, fragment_ids: Iterable[str]) -> list[Entry[DeliveryT, WorkT]]:
        """Return the entries of those IDs whose verdict has not fallen."""
        return [
            entry
            for entry in map(self._entries.get, fragment_ids)
            if entry is not None and entry.verdict is None
        ]

    def was_settled(self, fragment_id: str, signature: Hashable) -> bool:
        """Tell whether the fragment is among the last that were acknowledged; another of its ID, with other files, is not."""
        return self._settled.get(fragment_id) == hash(signature)

    def was_dismissed(self, edition: Hashable) -> bool:
        """Tell whether this edition of a message is among the last that were dead-lettered or struck."""
        return edition in self._dismissed

    def out(self) -> int:
        """How many entries are with the transformation."""
        return sum(entry.state is State.OUT for entry in self._open)

    # -- arrival

    def admit(
        self,
        fragment_id: str,
        signature: Hashable,
        delivery: DeliveryT,
        work: WorkT,
        *,
        attempts: int = 0,
        suspect: bool = False,
        edition: Hashable = None,
    ) -> tuple[Admission, Entry[DeliveryT, WorkT] | None]:
        """Take a delivery in; `signature` is equal for two deliveries of one ID exactly if their files are.

        The entry that is returned is the new one, the one that was joined, or None.
        """
        entry = self._entries.get(fragment_id)
        known_outputs = self._struck_outputs.pop(fragment_id, set())
        if entry is not None:
            if entry.verdict is Verdict.STRIKE and attempts >= entry.attempts:
                # Its own second life, published a moment ago and back before the confirm of that was handled.
                known_outputs = entry.known_outputs
            elif entry.signature != signature:
                return Admission.CONFLICT, None
            else:
                entry.deliveries.append(delivery)
                entry.editions.append(edition)
                if entry.verdict is not Verdict.STRIKE:
                    # The edition that may be published must be none of these, or it would be taken for one that has been dealt with.
                    blamed_here = entry.attempts - entry.attempts_before
                    entry.attempts_before = max(entry.attempts_before, attempts)
                    entry.attempts = entry.attempts_before + blamed_here
                    entry.suspect |= suspect or attempts > 0
                return Admission.JOINED, entry
        elif fragment_id in self._settled:
            same = self.was_settled(fragment_id, signature)
            return Admission.SETTLED if same else Admission.CONFLICT, None
        entry = Entry(fragment_id, signature, delivery, work)
        entry.editions.append(edition)
        entry.attempts = entry.attempts_before = attempts
        entry.suspect = suspect or attempts > 0
        entry.known_outputs = known_outputs
        self._entries[fragment_id] = entry
        self._open[entry] = None
        return Admission.NEW, entry

    def admit_unreadable(
        self,
        delivery: DeliveryT,
        work: WorkT,
        reason: str,
        kind: DeadLetterKind = DeadLetterKind.UNREADABLE,
        edition: Hashable = None,
    ) -> Entry[DeliveryT, WorkT]:
        """Take in a delivery that is no fragment: its verdict, DEAD_LETTER, falls at once."""
        entry = Entry("", None, delivery, work)
        entry.editions.append(edition)
        entry.state = State.DONE
        entry.condemn(reason, kind)
        entry.verdict = Verdict.DEAD_LETTER
        self.dead_letters_in_a_row += 1
        self._open[entry] = None
        return entry

    def is_ready(self, entry: Entry[DeliveryT, WorkT]) -> None:
        """The files of a WAITING entry are there."""
        _expect(entry, State.WAITING)
        entry.state = State.READY

    def reject(
        self,
        entry: Entry[DeliveryT, WorkT],
        reason: str,
        kind: DeadLetterKind = DeadLetterKind.INPUT_REFUSED,
    ) -> list[Entry[DeliveryT, WorkT]]:
        """A WAITING entry cannot be made ready, by its own fault."""
        _expect(entry, State.WAITING)
        entry.state = State.DONE
        entry.condemn(reason, kind)
        return self._judge(entry)

    # -- the transformation

    def hand_out(self, entry: Entry[DeliveryT, WorkT]) -> None:
        """A READY entry has gone to a connection; its ordinals begin (again)."""
        _expect(entry, State.READY)
        entry.state = State.OUT
        entry.void = entry.striking = False
        entry.hand_outs += 1
        self._fence.begin(entry)
        self._ordinals.forget(entry.fragment_id)

    def take_result(
        self,
        predecessors: Iterable[str],
        channel: str | None,
        names: Iterable[str],
        source: Hashable = None,
    ) -> Output[DeliveryT, WorkT]:
        """A result has come by the output connection `source`: give it its identity, and let its predecessors in flight wait for it.

        An output that is `repeated` is not published, and nothing more is said of it; the first of its ID settles it. Neither is one
        that is `stray`: what it is a result of is made again, or has been.
        """
        ancestors = sorted(set(predecessors))
        sorted_names = sorted(names)
        entries = self._fence.hear_result(ancestors, self._entries, source)
        if entries is None:
            return Output("", [], stray=True)
        kind = (tuple(ancestors), channel, tuple(sorted_names))
        ordinal = self._ordinals.take(kind, [entry.fragment_id for entry in entries])
        output_id = self._identity.derive(ancestors, channel, sorted_names, ordinal)
        pending = self._pending_outputs.get(output_id)
        if pending is not None:
            self._wait_for(pending, [entry for entry in entries if entry not in pending.entries])
            return Output(output_id, entries, repeated=True)
        if any(output_id in entry.known_outputs for entry in entries):
            return Output(output_id, entries, repeated=True)
        output: Output[DeliveryT, WorkT] = Output(output_id, [])
        self._pending_outputs[output_id] = output
        self._wait_for(output, entries)
        return output

    def _wait_for(
        self, output: Output[DeliveryT, WorkT], entries: list[Entry[DeliveryT, WorkT]]
    ) -> None:
        output.entries += entries
        for entry in entries:
            entry._pending += 1

    def refuse_result(
        self,
        predecessors: Iterable[str],
        reason: str,
        kind: DeadLetterKind = DeadLetterKind.RESULT_REFUSED,
        source: Hashable = None,
    ) -> int:
        """A result is refused: those of its predecessors that are out will be dead letters. Returns how many are.

        None are by a result that would be stray.
        """
        entries = self._fence.hear_result(set(predecessors), self._entries, source) or []
        out = [entry for entry in entries if entry.state is State.OUT]
        for entry in out:
            entry.condemn(reason, kind)
        return len(out)

    def done(
        self, fragment_id: str, source: Hashable = None
    ) -> tuple[Entry[DeliveryT, WorkT] | None, list[Entry[DeliveryT, WorkT]]]:
        """The transformation says by the output connection `source` that it has finished with a fragment.

        Returns the entry whose hand-out has ended by that (None: no hand-out of this fragment is out, or it is not of this one),
        and the entries whose verdict has fallen.
        """
        entry = self._entries.get(fragment_id)
        counts = self._fence.hear_done(fragment_id, entry, source)
        if entry is None or not counts:
            return None, []
        if entry.void or entry.owed:
            entry.owed -= 0 if entry.void else 1
            self._end_hand_out(entry)
        else:
            entry.state = State.DONE
        return entry, self._judge(entry)

    def breach(self, reason: str) -> list[Entry[DeliveryT, WorkT]]:
        """A frame could not be read: all that are out have lost an attempt, and their next done does not count.

        Returns the entries that are void by that. One that has no attempts left will be a dead letter.
        """
        voided = [entry for entry in self._open if entry.state is State.OUT and not entry.void]
        for entry in voided:
            entry.void = True
            self._blame(entry, reason, DeadLetterKind.BREACH)
        return voided

    def give_up_void(self, entry: Entry[DeliveryT, WorkT]) -> list[Entry[DeliveryT, WorkT]]:
        """The done of a void hand-out is not waited for any longer."""
        _expect(entry, State.OUT)
        entry.owed += 1
        self._end_hand_out(entry)
        return self._judge(entry)

    def give_up_doubted(self, entry: Entry[DeliveryT, WorkT]) -> list[Entry[DeliveryT, WorkT]]:
        """A done of this hand-out has come that did not count, and whoever had it waits for input: it is handed out again."""
        _expect(entry, State.OUT)
        entry.doubts += 1
        if self._exhausted(entry):
            entry.condemn(_SCATTERED, DeadLetterKind.BREACH)
        self._end_hand_out(entry)
        return self._judge(entry)

    def connection_closed(
        self,
        held: Sequence[Entry[DeliveryT, WorkT]],
        *,
        death: bool,
        reason: str = "the transformation died on it",
        kind: DeadLetterKind = DeadLetterKind.TRANSFORMATION_DIED,
    ) -> list[Entry[DeliveryT, WorkT]]:
        """The connections that `held` these entries are gone, in one moment. `death` is False for an end that was asked for.

        A death counts against an entry that was held alone, or against the suspects. Otherwise one of several may
        be to blame, and all become suspects.
        """
        culprits = self._culprits(held) if death else ()
        fallen = []
        for entry in held:
            if entry.state is not State.OUT:
                continue
            self._end_hand_out(entry)
            if entry in culprits:
                if not entry.void:
                    self._blame(entry, reason, kind)
                entry.striking = True
            entry.suspect |= death
            fallen += self._judge(entry)
        return fallen

    def _culprits(
        self, held: Sequence[Entry[DeliveryT, WorkT]]
    ) -> Sequence[Entry[DeliveryT, WorkT]]:
        """Return those of the entries that a death counts against.

        One suspect is out at a time, unless a step gathers: then they died together, and always will. An entry beside others that were
        handed out for the first time does not lose its last attempt, since one of them may be poison too; the next time they are suspects.
        """
        suspects = [entry for entry in held if entry.suspect]
        if len(held) == 1:
            return held
        if len(suspects) == 1 and suspects[0].attempts + 1 >= self._attempts_allowed:
            return ()
        return suspects

    def _blame(self, entry: Entry[DeliveryT, WorkT], reason: str, kind: DeadLetterKind) -> None:
        entry.attempts += 1
        entry.lost_to = kind
        entry.unsaved = True
        entry.suspect = True
        if self._exhausted(entry):
            entry.condemn(f"{reason} ({entry.attempts} attempts)", kind)

    def _exhausted(self, entry: Entry[DeliveryT, WorkT]) -> bool:
        return max(entry.attempts, entry.doubts - 1) >= self._attempts_allowed

    # -- outputs

    def output_safe(self, output: Output[DeliveryT, WorkT]) -> list[Entry[DeliveryT, WorkT]]:
        """The output is stored, published and confirmed, its lineage too."""
        self._pending_outputs.pop(output.output_id, None)
        fallen = []
        for entry in output.entries:
            entry._pending -= 1
            entry.known_outputs.add(output.output_id)
            fallen += self._judge(entry)
        return fallen

    def output_refused(
        self, output: Output[DeliveryT, WorkT], reason: str
    ) -> list[Entry[DeliveryT, WorkT]]:
        """The output can never be stored, by its own fault: its predecessors are dead letters."""
        self._pending_outputs.pop(output.output_id, None)
        fallen = []
        for entry in output.entries:
            entry._pending -= 1
            entry.condemn(reason, DeadLetterKind.RESULT_REFUSED)
            fallen += self._judge(entry)
        return fallen

    # -- the end of an entry

    def give_back(self, entry: Entry[DeliveryT, WorkT]) -> list[Entry[DeliveryT, WorkT]]:
        """The entry will not be worked here any more; it returns to its queue when nothing of it is pending."""
        if entry.verdict is Verdict.AGAIN:
            entry.verdict = None
        if entry.verdict is None and entry.state is not State.DONE:
            self._end_hand_out(entry)
            entry.verdict = Verdict.GIVE_BACK
            return self._judge(entry)
        return []

    def again(self, entry: Entry[DeliveryT, WorkT]) -> None:
        """The verdict AGAIN is carried out: the entry is READY."""
        if entry.verdict is not Verdict.AGAIN:
            raise AssertionError(f"{entry!r} is not to be handed out again")
        entry.verdict = None
        entry.state = State.READY
        entry.reason = ""
        entry.kind = None

    def close(self, entry: Entry[DeliveryT, WorkT]) -> None:
        """Any other verdict is carried out: the entry is gone, and remembered if it was acknowledged."""
        if entry.verdict in {None, Verdict.AGAIN} or entry.state is State.CLOSED:
            raise AssertionError(f"{entry!r} has no verdict that closes it")
        entry.state = State.CLOSED
        self._open.pop(entry, None)
        if self._entries.get(entry.fragment_id) is entry:
            del self._entries[entry.fragment_id]
            if entry.verdict is Verdict.ACKNOWLEDGE:
                self._ordinals.keep(entry.fragment_id)
            else:
                self._ordinals.leave(entry.fragment_id)
            if entry.verdict is Verdict.STRIKE and entry.known_outputs:
                self._struck_outputs[entry.fragment_id] = entry.known_outputs
                if len(self._struck_outputs) > STRUCK:
                    self._struck_outputs.popitem(last=False)
        if entry.verdict is Verdict.ACKNOWLEDGE:
            _remember(self._settled, entry.fragment_id, hash(entry.signature))
        elif entry.verdict is not Verdict.GIVE_BACK:
            for edition in entry.editions:
                _remember(self._dismissed, edition, None)

    def _end_hand_out(self, entry: Entry[DeliveryT, WorkT]) -> None:
        """The hand-out of an entry has ended without a done that counts, if it was out."""
        if entry.state is State.OUT:
            self._fence.end(entry)
        entry.state = State.LEFT

    def _judge(self, entry: Entry[DeliveryT, WorkT]) -> list[Entry[DeliveryT, WorkT]]:
        """Let the verdict of an entry fall if nothing is left that it waits for."""
        if entry._pending or entry.state not in {State.DONE, State.LEFT}:
            return []
        if entry.verdict is None:
            entry.verdict = self._verdict(entry)
        elif entry.verdict is Verdict.GIVE_BACK and entry.unsaved:
            entry.verdict = self._dead_letter_or(Verdict.STRIKE, entry)
        if entry.verdict is Verdict.ACKNOWLEDGE:
            self.dead_letters_in_a_row = 0
        elif entry.verdict is Verdict.DEAD_LETTER:
            self.dead_letters_in_a_row += 1
        return [entry]

    def _verdict(self, entry: Entry[DeliveryT, WorkT]) -> Verdict:
        if entry.state is State.DONE:
            return Verdict.DEAD_LETTER if entry.reason else Verdict.ACKNOWLEDGE
        return self._dead_letter_or(Verdict.STRIKE if entry.striking else Verdict.AGAIN, entry)

    def _dead_letter_or(self, otherwise: Verdict, entry: Entry[DeliveryT, WorkT]) -> Verdict:
        """Return what becomes of an entry that was lost: a dead letter if no attempts are left."""
        if not self._exhausted(entry):
            return otherwise
        # It has a reason already, unless the last attempt was counted by another sidecar.
        reason = f"the transformation died on it ({entry.attempts} attempts)"
        entry.condemn(reason, DeadLetterKind.TRANSFORMATION_DIED)
        return Verdict.DEAD_LETTER


def _remember(what: OrderedDict[T, U], item: T, of_it: U) -> None:
    """Add an item behind all others, with what is kept of it, and forget the oldest of too many."""
    what[item] = of_it
    if len(what) > REMEMBERED:
        what.popitem(last=False)


def _expect(entry: Entry[DeliveryT, WorkT], state: State) -> None:
    if entry.state is not state:
        raise AssertionError(f"{entry!r} should be {state.name}")
