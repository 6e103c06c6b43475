"""When the queue is believed to be at its end, and what is given back then."""

from __future__ import annotations

import pytest
import trio

from iterum_sidecar.cargo import News
from tests.unit.intake_stage import Message, Stage


async def test_the_end_is_believed_when_the_queue_is_empty_at_two_looks_and_nothing_in_flight(
    autojump_clock: object,
) -> None:
    stage = Stage()
    async with stage.running():
        await stage.deliver(Message("a"))
        (entry,) = stage.let_in()
        await stage.tell(News.FINISHED)
        await trio.sleep(5)
        assert (stage.has_ended(), stage.queue.looks) == (False, 0), "something is in flight"
        stage.finish(entry)
        stage.queue.ready = 1
        await stage.tell(News.IDLE)
        await trio.sleep(5)
        assert (stage.has_ended(), stage.queue.looks) == (False, 0), "something waits"
        stage.queue.ready = 0
        await trio.sleep(2)
        assert (stage.has_ended(), stage.queue.looks) == (True, 1)


async def test_the_end_is_not_believed_while_the_broker_may_hold_what_a_lost_connection_had(
    autojump_clock: object,
) -> None:
    stage = Stage()
    stage.queue.owed = True
    async with stage.running():
        await stage.tell(News.FINISHED, News.IDLE)
        await trio.sleep(60)
        assert not stage.has_ended()
        stage.queue.owed = False
        await trio.sleep(2)
        assert stage.has_ended()


async def test_the_end_is_not_believed_by_one_who_is_not_in_the_line(
    autojump_clock: object,
) -> None:
    stage = Stage()
    stage.queue.may_take_place = trio.Event()
    async with stage.running():
        stage.queue.lose()
        await stage.tell(News.FINISHED, News.IDLE)
        await trio.sleep(60)
        assert not stage.has_ended()
        stage.queue.may_take_place.set()
        await trio.sleep(2)
        assert stage.has_ended()


async def test_the_end_is_not_believed_before_upstream_is_finished(autojump_clock: object) -> None:
    stage = Stage()
    async with stage.running():
        await stage.tell(News.IDLE)
        await trio.sleep(60)
        assert (stage.has_ended(), stage.queue.looks) == (False, 0)


async def test_a_starved_step_that_holds_all_is_at_the_end_when_nothing_is_left_to_arrive(
    autojump_clock: object,
) -> None:
    """It may hold an incomplete last batch; what arrives meanwhile is let in, and is no end."""
    stage = Stage()
    async with stage.running():
        await stage.deliver(Message("a"))
        (entry,) = stage.let_in()
        await stage.tell(News.FINISHED)
        stage.queue.ready = 1
        await stage.tell(News.ALL_STARVED)
        assert not stage.has_ended(), "something waits"
        stage.queue.ready = 0
        stage.queue.held_back = [Message("b")]
        await stage.tell(News.ALL_STARVED)
        assert not stage.has_ended()
        (late,) = stage.let_in()
        assert (late.deliveries[0].letter, stage.queue.places) == ("b", 2)
        await stage.tell(News.STARVED)
        assert not stage.has_ended(), "not every connection starves"
        await stage.tell(News.ALL_STARVED)
        assert stage.has_ended()
        assert set(stage.ledger) == {entry, late}
        assert stage.queue.acknowledged == stage.queue.given_back == []


async def test_what_had_arrived_is_given_back_when_it_is_told_to_stop(
    autojump_clock: object,
) -> None:
    stage = Stage()
    async with stage.running():
        await stage.deliver(*(Message(str(number), unreadable=True) for number in range(22)))
        assert len(stage.fallen()) == 20, "there is a pause: nothing but dead letters comes"
        stage.queue.held_back = [Message("a")]
        stage.stop.set()
        await stage.settle_down()
        assert stage.has_ended()
        assert sorted(each.letter for each in stage.queue.given_back) == ["20", "21", "a"]
        assert stage.queue.acknowledged == []


@pytest.mark.parametrize("starved", [False, True])
@pytest.mark.parametrize("what", ["arrives", "loses its place"])
async def test_the_end_is_not_believed_when_something_happens_while_it_is_looked_at(
    starved: bool, what: str, autojump_clock: object
) -> None:
    """The look takes a moment, in which a message may be let in, or the place in the line be lost and taken again."""
    stage = Stage()
    async with stage.running():
        if starved:
            await stage.deliver(Message("a"))
            stage.let_in()

        async def happen() -> None:
            stage.queue.meanwhile = trio.lowlevel.checkpoint
            if what == "arrives":
                stage.queue.deliver(Message("b"))
            else:
                stage.queue.lose()
            await trio.sleep(0.1)

        stage.queue.meanwhile = happen
        await stage.tell(News.FINISHED, News.ALL_STARVED)
        await trio.sleep(0.5)
        assert not stage.has_ended()
        assert len(stage.ledger) == starved + (what == "arrives")
        stage.finish(*stage.let_in())
        await stage.tell(News.ALL_STARVED)
        await trio.sleep(2)
        assert stage.has_ended()


async def test_what_is_done_and_not_stored_yet_does_not_hold_the_end_of_a_starved_step_up(
    autojump_clock: object,
) -> None:
    stage = Stage()
    async with stage.running():
        await stage.deliver(Message("a"), Message("b"))
        first, _ = stage.let_in()
        stage.ledger.take_result([first.fragment_id], None, ["x"])
        stage.ledger.done(first.fragment_id)
        assert first.pending == 1
        await stage.tell(News.FINISHED, News.ALL_STARVED)
        assert stage.has_ended()
