from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.dead_letters.place import SUFFIX, find_place
from iterum_sidecar.exit_codes import BadConfiguration
from tests.unit.check.environment import RIGHT

if TYPE_CHECKING:
    from pathlib import Path

URL = "amqp://user:hunter2@broker:5672/"
TWO = {"MQ_BROKER_URL": URL, "MQ_INPUT_QUEUE": "to-edges"}


def test_two_variables_are_enough() -> None:
    place = find_place(TWO)
    assert (place.queue, place.input_queue) == ("to-edges-dead-letter", "to-edges")
    assert (place.address.host, place.address.variable) == ("broker", "MQ_BROKER_URL")
    assert place.parameters.password == "hunter2"
    assert "hunter2" not in repr(place)


def test_the_variables_of_a_pod_lead_there_whatever_else_is_wrong_with_them() -> None:
    spoilt = RIGHT | {"MINIO_URL": "", "SIDECAR_ATTEMPTS": "many", "SIDECAR_UNKNOWN": "x"}
    assert find_place(RIGHT).queue == find_place(spoilt).queue == "to-edges-dead-letter"


@pytest.mark.parametrize("name", ["other", f"other{SUFFIX}"])
def test_a_queue_is_named_by_itself_or_by_its_input_queue(name: str) -> None:
    place = find_place(TWO, queue=name)
    assert (place.queue, place.input_queue) == ("other-dead-letter", "other")


def test_no_input_queue_is_ever_taken_for_dead_letters() -> None:
    # The input queue of a step that works on another one's dead letters.
    assert find_place(TWO, queue=f"other{SUFFIX}{SUFFIX}").input_queue == f"other{SUFFIX}"
    for name in ("", "a", "dead-letter", "a-dead-letters"):
        assert find_place(TWO, queue=name).queue.endswith(SUFFIX)


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("amqp://in-a-file/\n", encoding="utf-8")
    variables = {"MQ_BROKER_URL_FILE": str(file), "MQ_INPUT_QUEUE": "to-edges"}
    assert find_place(variables).address.host == "in-a-file"
    place = find_place(variables, broker_url="amqp://given:1")
    assert (str(place.address), place.address.variable) == ("given:1", "--broker")


def test_what_is_missing_is_named_with_the_option_that_stands_for_it() -> None:
    with pytest.raises(BadConfiguration) as told:
        find_place({})
    broker, queue = told.value.problems
    assert broker.startswith("MQ_BROKER_URL is missing: set it to amqp://")
    assert broker.endswith(", or give --broker")
    assert queue.startswith("MQ_INPUT_QUEUE is missing: set it to the name of the queue")
    assert queue.endswith(", or give --queue")


def test_a_secret_that_cannot_be_read_is_named_by_its_file() -> None:
    with pytest.raises(BadConfiguration) as told:
        find_place({"MQ_BROKER_URL_FILE": "/nowhere", "MQ_INPUT_QUEUE": "a"})
    (problem,) = told.value.problems
    assert problem.startswith("MQ_BROKER_URL_FILE ")
    assert "No such file" in problem


def test_tls_is_as_the_variables_say_and_needed_only_where_it_is_spoken(tmp_path: Path) -> None:
    missing = {"SIDECAR_CA_FILE": str(tmp_path / "none")}
    assert find_place(TWO | missing).address.context is None
    with pytest.raises(BadConfiguration, match="SIDECAR_CA_FILE"):
        find_place(TWO | missing, broker_url="amqps://broker")
    place = find_place(
        TWO | {"SIDECAR_BROKER_SERVER_NAME": "other.name"}, broker_url="amqps://broker"
    )
    assert place.address.context is not None
    assert place.address.server_name == "other.name"
