"""The checker catches what it is there to catch: each bug here, put into the sidecar on purpose, within a few seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from iterum_sidecar import sidecar
from iterum_sidecar.brokers import reconnecting
from iterum_sidecar.brokers.port import BrokerLost
from iterum_sidecar.entries import State, Verdict
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.ordinals import Ordinals
from iterum_sidecar.roster import Seat
from iterum_sidecar.stages import settle
from iterum_sidecar.stages.intake import Intake
from iterum_sidecar.stages.publish import Publish, _Sent
from iterum_sidecar.stages.upload import Upload
from iterum_sidecar.volume import Volume
from tests.simulation.names import LINEAGE
from tests.simulation.run import run_seed

if TYPE_CHECKING:
    from collections.abc import Callable

Patch = pytest.MonkeyPatch


class _Kept:
    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()


async def _nothing(*_args: object, **_named: object) -> None:
    await trio.lowlevel.checkpoint()


def acknowledge_before_the_results_are_safe(patch: Patch) -> None:
    patch.setattr(Ledger, "_wait_for", lambda *_: None)


def forget_the_lineage(patch: Patch) -> None:
    send = Publish._send

    async def forgetful(self: Publish, queue: str, body: bytes, headers: Any = None) -> Any:  # noqa: ANN401
        if queue == LINEAGE:
            return _Sent(queue, body, headers, _Kept())
        return await send(self, queue, body, headers)

    patch.setattr(Publish, "_send", forgetful)


def leave_results_on_the_volume(patch: Patch) -> None:
    patch.setattr(Volume, "remove_results", lambda *_: None)


def drop_what_comes_again(patch: Patch) -> None:
    admit = Intake._admit

    def forgetful(self: Intake, delivery: Any) -> None:  # noqa: ANN401
        if not delivery.redelivered:
            admit(self, delivery)

    patch.setattr(Intake, "_admit", forgetful)


def acknowledge_what_comes_again(patch: Patch) -> None:
    admit = Intake._admit

    def hasty(self: Intake, delivery: Any) -> None:  # noqa: ANN401
        if delivery.redelivered:
            self._broker.acknowledge(delivery)
        else:
            admit(self, delivery)

    patch.setattr(Intake, "_admit", hasty)


def give_the_same_work_another_identity(patch: Patch) -> None:
    patch.setattr(Ordinals, "forget", lambda *_: None)


def take_a_lost_confirm_for_a_confirm(patch: Patch) -> None:
    async def wait(self: reconnecting._Pledge) -> None:
        try:
            await self.promise.wait()  # type: ignore[union-attr]
        except BrokerLost:
            pass
        finally:
            self._broker.unconfirmed.pop(self, None)

    patch.setattr(reconnecting._Pledge, "wait", wait)


def end_without_a_look_at_the_queue(patch: Patch) -> None:
    async def at_the_end(_self: Intake, *, starved: bool) -> bool:
        return True

    patch.setattr(Intake, "_at_the_end", at_the_end)
    patch.setattr(sidecar, "look_once_more", _nothing)


def acknowledge_dead_letters_without_publishing_them(patch: Patch) -> None:
    patch.setattr(settle, "publish_until_safe", _nothing)


def never_blame_anyone(patch: Patch) -> None:
    patch.setattr(Ledger, "_blame", lambda *_: None)


def hand_out_one_more_than_is_allowed(patch: Patch) -> None:
    patch.setattr(Seat, "has_room", lambda self: len(self.held) <= self.depth)


def ask_for_more_than_the_window(patch: Patch) -> None:
    consume = reconnecting.ReconnectingBroker.consume

    def greedy(self: reconnecting.ReconnectingBroker, queue: str, window: int) -> Any:  # noqa: ANN401
        return consume(self, queue, window * 10)

    patch.setattr(reconnecting.ReconnectingBroker, "consume", greedy)


def publish_what_is_not_stored(patch: Patch) -> None:
    patch.setattr(Upload, "_put_all", _nothing)


def acknowledge_what_the_transformation_died_on(patch: Patch) -> None:
    verdict = Ledger._verdict

    def hasty(self: Any, entry: Any) -> Verdict:  # noqa: ANN401
        return Verdict.ACKNOWLEDGE if entry.state is State.LEFT else verdict(self, entry)

    patch.setattr(Ledger, "_verdict", hasty)


def acknowledge_twice(patch: Patch) -> None:
    acknowledge = reconnecting.ReconnectingBroker.acknowledge

    def twice(self: reconnecting.ReconnectingBroker, delivery: Any) -> None:  # noqa: ANN401
        acknowledge(self, delivery)
        acknowledge(self, delivery)

    patch.setattr(reconnecting.ReconnectingBroker, "acknowledge", twice)


@pytest.mark.parametrize(
    ("bug", "within", "said"),
    [
        (acknowledge_before_the_results_are_safe, 20, "before all that came of it was safe"),
        (forget_the_lineage, 5, "has no lineage"),
        (leave_results_on_the_volume, 20, "on its volume are"),
        (drop_what_comes_again, 20, ""),
        (acknowledge_what_comes_again, 20, "was acknowledged"),
        (give_the_same_work_another_identity, 60, "that nothing can have made"),
        (take_a_lost_confirm_for_a_confirm, 150, ""),
        (end_without_a_look_at_the_queue, 20, "wait in the input queue"),
        (acknowledge_dead_letters_without_publishing_them, 20, "is lost"),
        (never_blame_anyone, 20, "turns in a circle"),
        (hand_out_one_more_than_is_allowed, 150, ""),
        (ask_for_more_than_the_window, 30, "and the window is"),
        (publish_what_is_not_stored, 5, "was published before its file"),
        (acknowledge_what_the_transformation_died_on, 20, "before all that came of it was safe"),
        (acknowledge_twice, 10, "twice on one channel"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bug_is_caught(
    monkeypatch: Patch, bug: Callable[[Patch], None], within: int, said: str
) -> None:
    bug(monkeypatch)
    found: list[str] = []
    for seed in range(within):
        found = [each for each in run_seed(seed).violations if said in each]
        if found:
            print(f"{bug.__name__}: seed {seed}")
            break
    assert found, f"no seed below {within} has shown it"
