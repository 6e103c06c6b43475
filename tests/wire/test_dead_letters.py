"""`iterum-sidecar dead-letters` against a real broker: what it shows, and that nothing is lost by it, however it ends."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pika
import pytest

from iterum_sidecar.identity import OutputIdentity
from testbed.contents import put_object
from testbed.fragments import RemoteFile, RemoteFragment, new_id
from testbed.ports import LOCAL, free_ports
from testbed.process import Process, wait_until

from .journey import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from pika.adapters.blocking_connection import BlockingChannel

    from testbed.rabbitmq import RabbitMQ

    from .journey import Journey

COMMAND = [sys.executable, "-m", "iterum_sidecar", "dead-letters"]
NOT_DONE, USAGE, CONFIGURATION, VOLUME, SERVICE, INTERRUPTED = 1, 2, 10, 11, 12, 130
SUFFIX = "-dead-letter"
QUORUM = {"x-queue-type": "quorum"}


class Told(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        whole: dict[str, Any] = json.loads(self.out)
        return whole


class Letters:
    """A dead-letter queue and its input queue, both of one's own, and a peer's view of them."""

    def __init__(self, channel: BlockingChannel, url: str, queue: str) -> None:
        self.channel = channel
        self.url = url
        self.input_queue = queue
        self.queue = queue + SUFFIX
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            "MQ_BROKER_URL": url,
            "MQ_INPUT_QUEUE": queue,
        }

    def declare(self, *, arguments: Mapping[str, Any] | None = None) -> None:
        self.channel.queue_declare(self.input_queue, durable=True)
        self.channel.queue_declare(self.queue, durable=True, arguments=dict(arguments or {}))

    def put(self, letters: Iterable[tuple[bytes, Mapping[str, Any]]], **properties: Any) -> None:  # noqa: ANN401
        for body, headers in letters:
            given = pika.BasicProperties(
                headers=dict(headers),
                delivery_mode=2,
                content_type="application/json",
                **properties,
            )
            self.channel.basic_publish("", self.queue, body, given)
        # The broker answers in order: it has read everything before.
        self.channel.basic_qos(prefetch_count=0)

    def run(self, *arguments: str, **variables: str) -> Told:
        """Run a command to its end."""
        ended = subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        told = Told(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
        assert "Traceback" not in told.err, told.err
        assert "guest:guest" not in told.out + told.err
        return told

    def start(self, log: Path, *arguments: str) -> Process:
        return Process([*COMMAND, *arguments], log=log, environment=self.environment)

    def count(self, queue: str) -> int:
        declared = self.channel.queue_declare(queue, passive=True)
        return int(declared.method.message_count)

    def take(self, queue: str) -> list[tuple[bytes, pika.BasicProperties]]:
        """Take all messages of a queue, in order."""
        found: list[tuple[bytes, pika.BasicProperties]] = []
        while number := self.count(queue):
            for _, properties, body in itertools.islice(
                self.channel.consume(queue, auto_ack=True), number
            ):
                found.append((body, properties))
            self.channel.cancel()
        return found

    def bodies(self, queue: str) -> list[bytes]:
        return [body for body, _ in self.take(queue)]

    def wait_for(self, queue: str, number: int) -> None:
        """Wait until so many messages are in a queue: what a connection held comes back a moment after it is gone."""
        wait_until(lambda: self.count(queue) == number, seconds=30, what=f"{number} in {queue}")


@pytest.fixture
def letters(rabbitmq: RabbitMQ, queue: str) -> Iterator[Letters]:
    parameters = pika.URLParameters(rabbitmq.url)
    parameters.heartbeat = 0
    with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
        channel = connection.channel()
        yield Letters(channel, rabbitmq.url, queue)
        if channel.is_open:
            channel.queue_delete(queue)
            channel.queue_delete(queue + SUFFIX)


def fragment(fragment_id: str = "", **more: object) -> bytes:
    files = [{"name": "a", "path": "iterum_data/a", "bucket": "b"}]
    metadata = {"fragment_id": fragment_id or new_id(), "predecessors": []}
    return json.dumps({"files": files, "metadata": metadata, **more}).encode()


def why(kind: str, queue: str = "", **more: object) -> dict[str, object]:
    """The headers of a dead letter, as `stages/settle.py` writes them."""
    headers: dict[str, object] = {
        "x-iterum-kind": kind,
        "x-iterum-reason": f"because of {kind}",
        "x-iterum-time": "2026-11-25T00:34:23.050+00:00",
        "x-iterum-step": "0f3a9c51b7de4e60a1c84d2f96b05e7d-edges",
        "x-iterum-host": "a-pod",
        "x-iterum-attempts": 2,
    }
    return headers | ({"x-iterum-queue": queue} if queue else {}) | more


def mixed(number: int, share: int, queue: str, seed: int) -> list[tuple[bytes, dict[str, object]]]:
    """So many letters, of which `share` are input_missing, in a shuffled order."""
    kinds = ["input_missing"] * share + ["unreadable"] * (number - share)
    random.Random(seed).shuffle(kinds)
    return [(fragment(), why(kind, queue)) for kind in kinds]


# -- with a sidecar


def test_what_a_sidecar_has_set_aside_is_shown_mended_and_worked(journey: Journey) -> None:
    step = journey.step
    good = journey.seed({"good": b"good"})
    missing_id = new_id()
    where = RemoteFile("late", f"iterum_data/{missing_id}/late", step.input_bucket)
    missing = RemoteFragment(missing_id, (where,))
    twin = RemoteFragment(good.fragment_id, (where,))
    bodies = [b"not \x1b[31mJSON\xff", missing.body(), twin.body()]
    journey.queue_inputs()
    journey.queues.publish(step.input_queue, bodies)
    journey.end(journey.start_sidecar(prefetch=10), journey.start_step("mirror"))
    with contextlib.closing(
        pika.BlockingConnection(pika.URLParameters(journey.broker.url))
    ) as connection:
        letters = Letters(connection.channel(), journey.broker.url, step.input_queue)

        told = letters.run("list")
        assert told.code == 0
        assert max(map(len, told.out.splitlines())) <= 80
        assert "\n1 conflict, 1 input_missing, 1 unreadable\n" in told.out
        listed = {each["kind"]: each for each in letters.run("list", "--json").json["letters"]}
        assert listed["input_missing"]["id"] == missing_id
        assert listed["conflict"]["id"] == good.fragment_id
        assert listed["unreadable"]["id"] is None
        assert listed["input_missing"]["step"] == step.name
        assert listed["input_missing"]["queue"] == step.input_queue
        assert "NoSuchKey" in listed["input_missing"]["reason"]

        shown = letters.run("show", missing_id[:12])
        assert shown.code == 0
        assert f'"fragment_id": "{missing_id}"' in shown.out
        assert "  x-iterum-kind      input_missing\n" in shown.out
        (unreadable,) = (
            line.split()[0] for line in told.out.splitlines() if " unreadable " in line
        )
        shown = letters.run("show", unreadable)
        assert shown.out.isascii()
        assert "\x1b" not in shown.out
        assert "not \\x1b[31mJSON\\xff" in shown.out
        assert letters.count(letters.queue) == 3, "all have gone back"

        put_object(journey.store, where.bucket, where.path, b"it came late")
        retried = letters.run("retry", "--kind", "input_missing")
        assert (retried.code, retried.err) == (0, "")
        assert letters.count(letters.queue) == 2
    journey.end(journey.start_sidecar(), journey.start_step("mirror"))
    outputs = journey.take_outputs()
    assert outputs.keys() == {good.fragment_id, missing_id}
    identity = OutputIdentity(step.pipeline_hash, step.name)
    assert outputs[missing_id].fragment_id == identity.derive([missing_id], None, ["late"], 0)
    left = [message.body for message in journey.queues.take(step.dead_letter_queue)]
    assert sorted(left) == sorted([bodies[0], bodies[2]])


# -- which queue


def test_two_variables_are_enough_and_no_queue_is_no_dead_letter(letters: Letters) -> None:
    told = letters.run("list")
    assert (told.code, told.err) == (0, "")
    assert told.out == f"no dead letters: there is no queue {letters.queue}\n"
    for action in (["show", "a"], ["retry", "--all"], ["discard", "--all", "--yes"]):
        told = letters.run(*action)
        assert told.code == NOT_DONE
        assert told.err == f"iterum-sidecar: no dead letters: there is no queue {letters.queue}\n"


@pytest.mark.parametrize("suffix", ["", SUFFIX])
def test_the_queue_may_be_named_by_itself_or_by_its_input_queue(
    letters: Letters, suffix: str
) -> None:
    letters.declare()
    letters.put([(fragment(), why("unreadable"))])
    named = ["--broker", letters.url, "--queue", letters.input_queue + suffix]
    told = letters.run("list", *named, MQ_BROKER_URL="", MQ_INPUT_QUEUE="other")
    assert told.out.startswith(f"1 dead letter in {letters.queue}\n")


def test_nobodys_input_is_taken_for_dead_letters(letters: Letters) -> None:
    letters.channel.queue_declare(letters.input_queue)
    letters.channel.basic_publish("", letters.input_queue, b"work")
    told = letters.run("discard", "--all", "--yes", "--queue", letters.input_queue)
    assert told.code == NOT_DONE
    assert letters.bodies(letters.input_queue) == [b"work"]


def test_without_variables_what_is_missing_is_named(letters: Letters) -> None:
    told = letters.run("list", MQ_BROKER_URL="", MQ_INPUT_QUEUE="")
    assert (told.code, told.out) == (CONFIGURATION, "")
    first, second = told.err.splitlines()
    assert first.startswith("iterum-sidecar: MQ_BROKER_URL is missing")
    assert second.startswith("iterum-sidecar: MQ_INPUT_QUEUE is missing")
    assert second.endswith(", or give --queue")


# -- what is left stays as it was


@pytest.mark.parametrize("arguments", [{}, QUORUM], ids=["classic", "quorum"])
@pytest.mark.parametrize(("number", "share"), [(2_000, 700), (5_000, 1_500)])
def test_what_is_not_taken_stays_in_its_order(
    letters: Letters, arguments: dict[str, Any], number: int, share: int
) -> None:
    letters.declare(arguments=arguments)
    all_of_them = mixed(number, share, letters.input_queue, seed=number)
    letters.put(all_of_them)
    letters.wait_for(letters.queue, number)
    listed = letters.run("list", "--json").json
    assert [each["id"] for each in listed["letters"]] == [
        json.loads(body)["metadata"]["fragment_id"] for body, _ in all_of_them
    ]
    told = letters.run("retry", "--kind", "input_missing", "--json")
    assert (told.code, told.err) == (0, "")
    assert told.json["back"] == share
    letters.wait_for(letters.queue, number - share)
    by_kind: dict[object, list[bytes]] = {"input_missing": [], "unreadable": []}
    for body, headers in all_of_them:
        by_kind[headers["x-iterum-kind"]].append(body)
    assert letters.bodies(letters.input_queue) == by_kind["input_missing"]
    assert letters.bodies(letters.queue) == by_kind["unreadable"]


def test_a_letter_goes_back_as_it_came_and_says_how_often(letters: Letters) -> None:
    letters.declare()
    body = bytes(range(256)) * 3
    headers = {"traceparent": "00-1", "deep": {"list": [1, "two", None]}, "x-delivery-count": 3}
    letters.put(
        [(body, headers | why("unreadable", letters.input_queue))],
        correlation_id="one",
        priority=3,
        type="a type",
        expiration="86400000",
    )
    for retries in (1, 2):
        assert letters.run("retry", "--all").code == 0
        ((found, properties),) = letters.take(letters.input_queue)
        assert found == body
        assert properties.headers == {
            "traceparent": "00-1",
            "deep": {"list": [1, "two", None]},
            "x-iterum-retries": retries,
        }
        assert (properties.correlation_id, properties.priority) == ("one", 3)
        assert (properties.type, properties.content_type) == ("a type", "application/json")
        assert properties.delivery_mode == 2
        assert properties.expiration is None, "what expires is lost"
        letters.put(
            [(found, properties.headers | why("unreadable"))],
            correlation_id="one",
            priority=3,
            type="a type",
        )


def test_a_letter_of_another_program_is_listed_as_such(letters: Letters) -> None:
    letters.declare()
    letters.put([(b"hello", {})])
    (letter,) = letters.run("list", "--json").json["letters"]
    assert letter["kind"] == "foreign"
    assert "another program" in letter["reason"]
    told = letters.run("retry", "--id", letter["digest"][:12])
    assert told.code == 0
    assert letters.bodies(letters.input_queue) == [b"hello"]


# -- which of them


def test_a_beginning_that_fits_several_is_refused_and_an_id_fits_all_of_its_letters(
    letters: Letters,
) -> None:
    letters.declare()
    names = ["x" * 10 + "y" * 54, "x" * 64]
    bodies = [fragment(names[0]), fragment(names[1]), fragment(names[1], other=1)]
    letters.put((body, why("conflict", letters.input_queue)) for body in bodies)
    told = letters.run("retry", "--id", "xxxx")
    assert told.code == NOT_DONE
    assert all(name in told.err for name in names)
    told = letters.run("show", names[1], "--raw")
    assert told.code == NOT_DONE
    assert "2 different letters have this ID" in told.err
    assert letters.run("show", "--raw", told.err.split()[-1]).out.encode() in bodies[1:]
    assert letters.bodies(letters.input_queue) == []
    told = letters.run("retry", "--id", names[1], "unknown")
    assert told.code == NOT_DONE
    assert "no dead letter has the ID unknown" in told.err
    assert letters.bodies(letters.input_queue) == bodies[1:]
    assert letters.bodies(letters.queue) == bodies[:1]


def test_a_selection_that_fits_none_changes_nothing(letters: Letters) -> None:
    letters.declare()
    letters.put([(b"a", why("unreadable"))])
    for action in (["retry"], ["discard", "--yes"], ["list"]):
        told = letters.run(*action, "--reason", "nothing like it")
        assert (told.code, told.out) == (NOT_DONE, "")
        assert told.err == (
            f"iterum-sidecar: none of 1 dead letter in {letters.queue} fits; there are 1 unreadable\n"
        )
    assert letters.run("retry").code == USAGE
    assert letters.run("discard", "--yes", "--limit", "1").code == USAGE
    assert letters.run("discard", "--all").code == USAGE
    assert letters.bodies(letters.queue) == [b"a"]


def test_a_dry_run_changes_nothing(letters: Letters) -> None:
    letters.declare()
    counted = {"x-delivery-count": 12}
    letters.put([(b"a", why("unreadable", letters.input_queue)), (b"b", why("conflict") | counted)])
    told = letters.run("retry", "--all", "--dry-run")
    assert told.code == 0
    assert "counts each look as a delivery: one letter has had 12." in told.err
    assert f"2 dead letters would be on {letters.input_queue} again" in told.out
    told = letters.run("discard", "--kind", "conflict", "--dry-run", "--json")
    assert [each["kind"] for each in told.json["letters"]] == ["conflict"]
    assert letters.bodies(letters.queue) == [b"a", b"b"]


# -- where it cannot go on


def test_a_queue_that_is_not_there_takes_nothing(letters: Letters) -> None:
    letters.channel.queue_declare(letters.queue, durable=True)
    letters.put([(b"a", why("unreadable", letters.input_queue)), (b"b", why("conflict"))])
    for more in ([], ["--to", letters.input_queue], ["--dry-run"]):
        told = letters.run("retry", "--all", *more)
        assert (told.code, told.out) == (NOT_DONE, "")
        assert f"there is no queue {letters.input_queue}" in told.err
        assert "start a sidecar of the step" in told.err
    assert letters.run("retry", "--all", "--to", letters.queue).code == USAGE
    assert letters.bodies(letters.queue) == [b"a", b"b"]


def test_a_queue_that_is_full_keeps_the_rest_where_it_is(letters: Letters) -> None:
    full = {"x-max-length": 2, "x-overflow": "reject-publish"}
    letters.channel.queue_declare(letters.input_queue, arguments=full)
    letters.channel.queue_declare(letters.queue, durable=True)
    bodies = [b"%d" % number for number in range(10)]
    letters.put((body, why("unreadable")) for body in bodies)
    told = letters.run("retry", "--all")
    assert told.code == NOT_DONE
    assert "did not take" in told.err
    back = letters.bodies(letters.input_queue)
    assert f"{len(back)} dead letters are on {letters.input_queue} again" in told.out
    assert back == bodies[: len(back)]
    assert letters.bodies(letters.queue) == bodies[len(back) :]


def test_a_broker_that_refuses_or_is_not_there(letters: Letters) -> None:
    url = letters.url.replace("guest:guest", "guest:hunter2")
    told = letters.run("list", MQ_BROKER_URL=url)
    assert (told.code, told.out) == (SERVICE, "")
    assert "403 ACCESS_REFUSED" in told.err
    assert "mend user and password in MQ_BROKER_URL" in told.err
    assert "hunter2" not in told.err
    told = letters.run("list", "--broker", f"{letters.url}nowhere")
    assert told.code == SERVICE
    assert "mend the path of --broker" in told.err
    (port,) = free_ports(1)
    told = letters.run("list", MQ_BROKER_URL=f"amqp://{LOCAL}:{port}")
    assert told.code == SERVICE
    assert told.err.startswith(
        f"iterum-sidecar: {LOCAL}:{port} ({LOCAL}): Connection refused; start it"
    )
    assert len(told.err.splitlines()) == 1


def test_a_port_that_does_not_answer_is_waited_for_no_longer_than_told(letters: Letters) -> None:
    with socket.create_server((LOCAL, 0)) as silent:
        url = f"amqp://{LOCAL}:{silent.getsockname()[1]}"
        began = time.monotonic()
        told = letters.run("list", "--timeout", "1", MQ_BROKER_URL=url)
        assert told.code == SERVICE
        assert "no answer within 1 s" in told.err
        assert time.monotonic() - began < 30


def test_a_queue_that_another_program_has_for_itself_is_not_waited_for_for_ever(
    letters: Letters,
) -> None:
    letters.declare(arguments={"x-single-active-consumer": True})
    letters.put([(b"a", why("unreadable")), (b"b", why("unreadable"))])
    letters.channel.basic_qos(prefetch_count=1)
    letters.channel.basic_consume(letters.queue, lambda *_: None, consumer_tag="other")
    told = letters.run("list", "--timeout", "1")
    assert (told.code, told.out) == (SERVICE, "")
    assert "another program may have it for itself" in told.err


def test_a_broker_that_takes_nothing_keeps_them_where_they_are(
    letters: Letters, rabbitmq: RabbitMQ
) -> None:
    letters.declare()
    bodies = [b"%d" % number for number in range(300)]
    letters.put((body, why("unreadable", letters.input_queue)) for body in bodies)
    with rabbitmq.short_of_memory():
        told = letters.run("retry", "--all", "--timeout", "2")
        assert told.code == SERVICE
        assert "the broker has taken no message for 2 s" in told.err
    held_or_back(letters, bodies)


def test_a_queue_that_would_drop_what_comes_back_is_not_looked_at(letters: Letters) -> None:
    letters.declare(arguments=QUORUM | {"x-delivery-limit": -1})
    letters.put([(b"a", why("unreadable"))])
    for action in (["list"], ["retry", "--all"]):
        told = letters.run(*action)
        assert told.code == NOT_DONE
        assert "drops each message that comes back" in told.err
    assert letters.bodies(letters.queue) == [b"a"]


# -- ends before the end


def held_or_back(letters: Letters, bodies: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Take both queues once everything is in one of them again, and see that nothing is lost."""
    wait_until(
        lambda: letters.count(letters.input_queue) + letters.count(letters.queue) >= len(bodies),
        seconds=30,
        what="what was held to come back",
    )
    back, stayed = letters.bodies(letters.input_queue), letters.bodies(letters.queue)
    assert {*back, *stayed} == {*bodies}
    assert len(back) == len({*back})
    return back, stayed


@pytest.mark.parametrize("seed", range(4))
def test_killed_in_the_middle_each_letter_is_in_one_place_at_least(
    letters: Letters, tmp_path: Path, seed: int
) -> None:
    letters.declare()
    number = 4_000
    bodies = [fragment() for _ in range(number)]
    letters.put((body, why("unreadable", letters.input_queue)) for body in bodies)
    moment = random.Random(seed).randrange(1, number // 2)
    with contextlib.closing(letters.start(tmp_path / "log", "retry", "--all")) as process:
        process.wait_until(
            lambda: letters.count(letters.input_queue) >= moment,
            seconds=60,
            what=f"{moment} to be back",
        )
        process.signal(signal.SIGKILL)
        assert process.wait(10).code == -signal.SIGKILL
    back, stayed = held_or_back(letters, bodies)
    assert len(back) < number, "it was killed too late"
    # What is in both places is what was not acknowledged yet.
    assert len(back) + len(stayed) - number <= 128 + 1024


def test_stopped_in_the_middle_it_tells_what_was_done(letters: Letters, tmp_path: Path) -> None:
    letters.declare()
    bodies = [fragment() for _ in range(4_000)]
    letters.put((body, why("unreadable", letters.input_queue)) for body in bodies)
    with contextlib.closing(letters.start(tmp_path / "log", "retry", "--all", "--json")) as process:
        process.wait_until(
            lambda: letters.count(letters.input_queue) >= 500, seconds=60, what="500 to be back"
        )
        process.signal(signal.SIGINT)
        assert process.wait(30).code == INTERRUPTED
        told = process.log_text()
    back, stayed = held_or_back(letters, bodies)
    assert 500 <= len(back) < len(bodies)
    assert json.loads(told[told.index("{") : told.index("}\n") + 1])["back"] == len(back)
    assert back + stayed == bodies, "none is in both places"
    assert "iterum-sidecar: stopped\n" in told


def test_cut_off_in_the_middle_nothing_is_lost(
    letters: Letters, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    letters.declare()
    bodies = [fragment() for _ in range(4_000)]
    letters.put((body, why("unreadable", letters.input_queue)) for body in bodies)
    with contextlib.closing(
        letters.start(tmp_path / "log", "retry", "--all", "--timeout", "300")
    ) as process:
        process.wait_until(
            lambda: letters.count(letters.input_queue) >= 500, seconds=60, what="500 to be back"
        )
        process.signal(signal.SIGSTOP)
        (connection,) = (
            line.split("\t")[0]
            for line in rabbitmq.ctl("list_connections", "pid", "client_properties").splitlines()
            if "iterum-sidecar dead-letters" in line
        )
        rabbitmq.ctl("close_connection", connection, "for a test")
        process.signal(signal.SIGCONT)
        assert process.wait(30).code == SERVICE
        told = process.log_text()
    assert "the broker was lost" in told
    assert "Traceback" not in told
    held_or_back(letters, bodies)


def test_a_second_sigint_ends_it_at_once_although_the_broker_says_nothing(
    letters: Letters, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    letters.declare()
    bodies = [fragment() for _ in range(4_000)]
    letters.put((body, why("unreadable", letters.input_queue)) for body in bodies)
    command = ("retry", "--all", "--timeout", "300")
    with contextlib.closing(letters.start(tmp_path / "log", *command)) as process:
        process.wait_until(
            lambda: letters.count(letters.input_queue) >= 500, seconds=60, what="500 to be back"
        )
        with rabbitmq.frozen():
            while process.poll() is None:
                process.signal(signal.SIGINT)
                time.sleep(0.2)
        assert process.wait(1).code == INTERRUPTED
        assert "Traceback" not in process.log_text()
    held_or_back(letters, bodies)


# -- throwing away


def test_what_is_discarded_is_saved_first(letters: Letters, tmp_path: Path) -> None:
    letters.declare()
    bodies = [b"a", b"\xff\x00", fragment(), b"d"]
    kinds = ["unreadable", "unreadable", "conflict", "unreadable"]
    letters.put((body, why(kind)) for body, kind in zip(bodies, kinds, strict=True))
    file = tmp_path / "saved.jsonl"
    arguments = ["discard", "--kind", "unreadable", "--limit", "2", "--yes", "--save", str(file)]
    told = letters.run(*arguments)
    assert (told.code, told.err) == (0, "")
    assert told.out == (
        f"2 dead letters are discarded, and saved in {file}: 2 unreadable\n2 of 4 stay in {letters.queue}\n"
    )
    first, second = (json.loads(line) for line in file.read_text(encoding="ascii").splitlines())
    assert first["body"].encode() == b"a"
    assert base64.b64decode(second["body_base64"]) == b"\xff\x00"
    assert first["headers"]["x-iterum-kind"] == "unreadable"
    told = letters.run(*arguments)
    assert told.code == VOLUME
    assert "is there already" in told.err
    told = letters.run(*arguments[:-1], str(tmp_path / "none" / "file"))
    assert told.code == VOLUME
    assert "No such file or directory" in told.err
    assert letters.bodies(letters.queue) == bodies[2:]


@pytest.mark.parametrize(
    ("answer", "code", "left"), [("y\n", 0, 0), ("\n", NOT_DONE, 2), ("", INTERRUPTED, 2)]
)
def test_it_asks_on_a_terminal_and_meanwhile_holds_them(
    letters: Letters, answer: str, code: int, left: int, tmp_path: Path
) -> None:
    letters.declare()
    letters.put([(b"a", why("unreadable")), (b"b", why("unreadable"))])
    file = tmp_path / "saved.jsonl"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "discard", "--all", "--save", str(file)],
        env=letters.environment,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        asked = os.read(process.stderr.fileno(), 1000).decode()
        assert asked.startswith("Discard 2 dead letters of 2 in ")
        assert letters.run("list").out == f"no dead letters in {letters.queue}\n"
        if answer:
            os.write(ours, answer.encode())
        else:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == code
    os.close(ours)
    os.close(theirs)
    assert len(letters.bodies(letters.queue)) == left
    assert file.exists() == (code == 0)
