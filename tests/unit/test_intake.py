"""What is let in, what is acknowledged unworked, and how large the window is."""

from __future__ import annotations

import pytest
import trio

from iterum_sidecar.cargo import Gathering, News
from iterum_sidecar.editions import ATTEMPTS_HEADER
from iterum_sidecar.entries import DeadLetterKind, Verdict
from iterum_sidecar.exit_codes import PrefetchTooSmall
from iterum_sidecar.stages.intake import LARGEST_WINDOW
from tests.unit.intake_stage import ATTEMPTS, Message, Stage

# -- what is let in


async def test_a_second_delivery_is_acknowledged_only_when_the_first_is_settled(
    autojump_clock: object,
) -> None:
    stage = Stage()
    first, second, third = (Message("a", redelivered=number > 0) for number in range(3))
    async with stage.running():
        await stage.deliver(first)
        (entry,) = stage.let_in()
        await stage.deliver(second)
        assert stage.let_in() == []
        assert entry.deliveries == [first, second]
        assert stage.queue.acknowledged == []
        stage.finish(entry)
        await stage.deliver(third)
        assert stage.let_in() == []
        assert stage.queue.acknowledged == [third]
        assert stage.tally.repeated == 2


async def test_another_fragment_of_an_id_is_a_dead_letter_and_never_taken_for_the_first(
    autojump_clock: object,
) -> None:
    stage = Stage()
    async with stage.running():
        await stage.deliver(Message("a"))
        (entry,) = stage.let_in()
        stage.finish(entry)
        other = Message("a", name="y", redelivered=True)
        await stage.deliver(other)
        (letter,) = stage.fallen()
        assert (letter.kind, letter.deliveries) == (DeadLetterKind.CONFLICT, [other])
        assert stage.queue.acknowledged == []


@pytest.mark.parametrize("attempts", [ATTEMPTS - 1, ATTEMPTS, ATTEMPTS + 1])
async def test_what_has_no_attempts_left_is_a_dead_letter_and_not_handed_out(
    attempts: int, autojump_clock: object
) -> None:
    stage = Stage()
    async with stage.running():
        await stage.deliver(Message("a", {ATTEMPTS_HEADER: attempts}))
        fallen, let_in = stage.fallen(), stage.let_in()
        if attempts < ATTEMPTS:
            assert (fallen, len(let_in)) == ([], 1)
        else:
            assert let_in == []
            assert [each.verdict for each in fallen] == [Verdict.DEAD_LETTER]
            assert fallen[0].reason == f"the transformation died on it ({attempts} attempts)"


@pytest.mark.parametrize(("acquired", "suspect"), [(0, False), (1, False), (2, True)])
async def test_what_the_broker_has_delivered_before_is_a_suspect(
    acquired: int, suspect: bool, autojump_clock: object
) -> None:
    stage = Stage()
    async with stage.running():
        await stage.deliver(Message("a", {"x-acquired-count": acquired}))
        (entry,) = stage.let_in()
        assert (entry.suspect, entry.attempts) == (suspect, 0)


@pytest.mark.parametrize(("redelivered", "worked"), [(False, True), (True, False)])
async def test_a_dead_letter_is_made_again_only_of_what_somebody_has_put_back(
    redelivered: bool, worked: bool, autojump_clock: object
) -> None:
    stage = Stage()
    async with stage.running():
        await stage.deliver(Message("not a fragment", unreadable=True))
        (letter,) = stage.fallen()
        assert (letter.kind, letter.verdict) == (DeadLetterKind.UNREADABLE, Verdict.DEAD_LETTER)
        stage.ledger.close(letter)
        again = Message("not a fragment", unreadable=True, redelivered=redelivered)
        await stage.deliver(again)
        assert len(stage.fallen()) == worked
        assert stage.queue.acknowledged == ([] if worked else [again])
        assert stage.tally.repeated == (not worked)


# -- a place in the line that is lost


async def test_a_new_place_is_taken_when_no_more_than_a_window_is_in_flight(
    autojump_clock: object,
) -> None:
    stage = Stage(window=2)
    async with stage.running():
        await stage.deliver(Message("a"), Message("b"), Message("c"))
        entries = stage.let_in()
        stage.queue.lose()
        await trio.sleep(5)
        assert stage.queue.places == 1
        stage.finish(entries[0])
        await trio.sleep(5)
        assert stage.queue.places == 2


# -- the window


async def test_the_window_is_one_of_fragments_and_not_of_their_deliveries(
    autojump_clock: object,
) -> None:
    """Otherwise repeats would fill it, and a step that gathers would wait for what cannot come."""
    stage = Stage(window=2)
    async with stage.running():
        await stage.deliver(Message("a"), Message("b"), Message("a", redelivered=True))
        await stage.tell(News.STARVED)
        assert stage.queue.grown_by == 0, "nothing waits"
        stage.queue.ready = 1
        await stage.tell(News.STARVED)
        await stage.tell(News.STARVED)
        assert stage.queue.grown_by == 1


@pytest.mark.parametrize(("fragments", "held"), [(3, 6), (5, 8)])
async def test_the_broker_is_told_how_much_of_the_window_a_gathering_step_may_hold(
    fragments: int, held: int, autojump_clock: object
) -> None:
    stage = Stage(window=8)
    async with stage.running():
        await stage.tell(Gathering(fragments, fragments))
        assert stage.queue.held == held
        assert stage.queue.grown_by == 0


async def test_a_window_is_called_too_small_for_starvation_in_one_go_and_no_other(
    autojump_clock: object,
) -> None:
    """Whenever that begins; and what completes a batch meanwhile is the end of it."""
    stage = Stage(window=2, standstill_after=60)
    stage.queue.ready = 1

    async def starve(seconds: int) -> None:
        for _ in range(seconds):
            await stage.tell(News.STARVED)
            await trio.sleep(1)

    async def run() -> None:
        await trio.sleep(1000)
        async with stage.running():
            await stage.tell(Gathering(5, 5))
            await starve(50)
            await trio.sleep(5)
            await starve(50)
            stage.queue.ready = 0
            await starve(1)
            stage.queue.ready = 1
            await starve(59)
            survived.append("so far")
            await starve(2)

    survived: list[str] = []
    with pytest.RaisesGroup(PrefetchTooSmall, flatten_subgroups=True):
        await run()
    assert survived


@pytest.mark.parametrize(("gathers", "told"), [(4, False), (5, True)])
async def test_a_window_that_holds_a_batch_is_not_called_too_small(
    gathers: int, told: bool, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(window=4)
    async with stage.running():
        await stage.tell(Gathering(gathers, gathers))
    assert ("needs a larger MQ_PREFETCH_COUNT" in caplog.text) is told


async def test_a_window_doubles_while_a_step_starves_and_has_a_largest_size(
    autojump_clock: object,
) -> None:
    stage = Stage(window=4, fixed=False)
    stage.queue.ready = 1
    async with stage.running():
        grown = []
        for _ in range(20):
            await stage.tell(News.STARVED)
            grown.append(stage.queue.grown_by)
        assert grown[:3] == [4, 12, 28]
        assert grown[-1] == LARGEST_WINDOW - 4


async def test_a_window_holds_two_batches_and_never_shrinks(autojump_clock: object) -> None:
    stage = Stage(window=8, fixed=False)
    async with stage.running():
        await stage.tell(Gathering(3, 3))
        assert (stage.queue.held, stage.queue.grown_by) == (6, 0)
        await stage.tell(Gathering(5, 5))
        assert stage.queue.grown_by == 2
        await stage.tell(Gathering(3, 3))
        assert stage.queue.grown_by == 2
