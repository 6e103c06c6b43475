"""How a sidecar ends: when all is done, and when it is told to stop with work in hand."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import TYPE_CHECKING

from testbed.contents import content
from testbed.process import wait_until

from .checks import check_mirrored

if TYPE_CHECKING:
    from testbed.process import Process

    from .journey import Journey

SIGTERM_EXIT = 143
SIGINT_EXIT = 130
DRAIN_EXIT = 16


def stop_at_the_gate(journey: Journey, number: signal.Signals) -> tuple[Process, Process]:
    """Start a sidecar and a gated step, and send the sidecar a signal while the step holds a fragment.

    Returns when the sidecar has stopped consuming.
    """
    for each in range(10):
        journey.seed({"a": content(each, 100)})
    journey.queue_inputs()
    gate = journey.directory / "gate"
    sidecar = journey.start_sidecar(prefetch=5)
    step = journey.start_step("gated", gate)
    sidecar.wait_until(
        gate.with_name("gate.reached").exists, seconds=20, what="the step to hold a fragment"
    )
    sidecar.signal(number)
    sidecar.wait_until(
        lambda: journey.queues.consumers(journey.step.input_queue) == 0,
        seconds=10,
        what="the sidecar to stop consuming",
    )
    return sidecar, step


def finish_the_rest(journey: Journey, done: set[str]) -> None:
    """Run a second life on what the first has left, and check that the two together did everything."""
    sidecar = journey.start_sidecar(prefetch=5)
    journey.end(sidecar, journey.start_step("mirror"))
    outcome = journey.outcome(once=False)
    check_mirrored(outcome, journey.contents, journey.store)
    assert {*outcome.by_input(), *done} == journey.inputs.keys()


def test_the_end_comes_when_upstream_has_finished_and_not_before(journey: Journey) -> None:
    journey.manager.finished = False
    sidecar = journey.start_sidecar()
    sidecar.wait_until(
        lambda: journey.queues.consumers(journey.step.input_queue) > 0,
        seconds=20,
        what="the sidecar to declare its queue and to consume",
    )
    step = journey.start_step("mirror")
    for number in range(20):
        journey.seed({"a": content(number, 100)})
    journey.queue_inputs()
    journey.wait_for_outputs(20, sidecar)
    asked = len(journey.manager.asked)
    assert sidecar.poll() is None
    journey.manager.finished = True
    journey.end(sidecar, step)
    check_mirrored(journey.outcome(), journey.contents, journey.store)
    assert len(journey.manager.asked) > asked
    path = f"/pipeline/{journey.step.pipeline_hash}/{journey.step.name}/upstream_finished"
    assert set(journey.manager.asked) == {path}


def test_a_pretended_manager_says_finished_at_the_fifth_question(journey: Journey) -> None:
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    sidecar = journey.start_sidecar(MANAGER_URL="http://dummy:3000")
    journey.end(sidecar, journey.start_step("mirror"))
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_nothing_to_do_is_done_too(journey: Journey) -> None:
    assert journey.run("mirror").outputs == []


def test_a_connection_that_comes_after_the_kill_gets_one_too(journey: Journey) -> None:
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    journey.wait_for_sockets()
    kill = b'\x15\x00\x00\x00{"status":"complete"}'
    with contextlib.ExitStack() as stack:
        inputs: list[socket.socket] = []
        outputs: list[socket.socket] = []
        for _ in range(2):
            for connections, path in (
                (outputs, journey.step.output_socket),
                (inputs, journey.step.input_socket),
            ):
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(20)
                connection.connect(str(path))
                connections.append(connection)
            assert inputs[-1].recv(len(kill)) == kill
        for connection in outputs:
            connection.sendall(kill)
        journey.end(sidecar)


def test_without_a_manager_it_serves_until_it_is_told_to_stop(journey: Journey) -> None:
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    sidecar = journey.start_sidecar(managed=False)
    step = journey.start_step("mirror")
    journey.wait_for_outputs(1, sidecar)
    journey.publish(journey.seed({"b": b"2"}).description())
    journey.wait_for_outputs(2, sidecar)
    assert sidecar.poll() is None
    sidecar.signal(signal.SIGTERM)
    journey.end(sidecar, step, code=SIGTERM_EXIT)
    check_mirrored(journey.outcome(), journey.contents, journey.store)
    assert journey.manager.asked == []


def test_a_stop_in_the_middle_loses_nothing(journey: Journey) -> None:
    for number in range(300):
        journey.seed({"a": content(number, 100)})
    journey.queue_inputs()
    sidecar = journey.start_sidecar(prefetch=20)
    step = journey.start_step("mirror", 0.005)
    journey.wait_for_outputs(50, sidecar)
    sidecar.signal(signal.SIGTERM)
    journey.end(sidecar, step, code=SIGTERM_EXIT)
    assert journey.leftovers() == []
    assert 0 < journey.queues.count(journey.step.input_queue) < 250
    second = journey.start_sidecar(prefetch=20)
    journey.end(second, journey.start_step("mirror"))
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_a_kill_in_the_middle_loses_nothing_and_repeats_with_the_same_ids(journey: Journey) -> None:
    for number in range(300):
        journey.seed({"a": content(number, 100)})
    journey.queue_inputs()
    sidecar = journey.start_sidecar(prefetch=50)
    step = journey.start_step("mirror", 0.005)
    journey.wait_for_outputs(50, sidecar)
    sidecar.signal(signal.SIGKILL)
    sidecar.wait(10)
    step.close()
    first = journey.take_outputs()
    second = journey.start_sidecar(prefetch=50)
    journey.end(second, journey.start_step("mirror"))
    # The step that was killed may have written one result that no sidecar ever heard of.
    outcome = journey.outcome(once=False, refused=1)
    check_mirrored(outcome, journey.contents, journey.store)
    again = outcome.by_input()
    assert {*first, *again} == journey.inputs.keys()
    assert all(first[each] == again[each] for each in first.keys() & again.keys())


def test_a_stop_waits_for_what_the_step_has_in_hand(journey: Journey) -> None:
    sidecar, step = stop_at_the_gate(journey, signal.SIGTERM)
    (journey.directory / "gate").touch()
    journey.end(sidecar, step, code=SIGTERM_EXIT)
    done = journey.take_outputs()
    assert 1 <= len(done) < 10
    finish_the_rest(journey, set(done))


def test_a_second_sigterm_changes_nothing(journey: Journey) -> None:
    sidecar, step = stop_at_the_gate(journey, signal.SIGTERM)
    sidecar.signal(signal.SIGTERM)
    sidecar.signal(signal.SIGTERM)
    # What was not handed out goes back at once, which shows that it is still at work after the signals.
    sidecar.wait_until(
        lambda: journey.queues.count(journey.step.input_queue) >= 5,
        seconds=10,
        what="the rest to come back",
    )
    assert sidecar.poll() is None
    (journey.directory / "gate").touch()
    journey.end(sidecar, step, code=SIGTERM_EXIT)
    done = journey.take_outputs()
    assert done
    finish_the_rest(journey, set(done))


def test_a_drain_that_takes_too_long_has_a_code_of_its_own(journey: Journey) -> None:
    journey.variables["SIDECAR_DRAIN_SECONDS"] = "0.5"
    sidecar, step = stop_at_the_gate(journey, signal.SIGTERM)
    journey.end(sidecar, code=DRAIN_EXIT)
    step.close()
    finish_the_rest(journey, set())


def test_a_second_sigint_ends_it_at_once(journey: Journey) -> None:
    sidecar, step = stop_at_the_gate(journey, signal.SIGINT)
    assert sidecar.poll() is None
    sidecar.signal(signal.SIGINT)
    journey.end(sidecar, code=SIGINT_EXIT, seconds=3)
    step.close()
    wait_until(
        lambda: journey.queues.count(journey.step.input_queue) == 10,
        seconds=10,
        what="everything to be back in the queue",
    )
    finish_the_rest(journey, set())
