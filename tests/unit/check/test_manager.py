from __future__ import annotations

import pytest

from iterum_sidecar.check.findings import Findings, Outcome
from iterum_sidecar.check.manager import look_at_manager
from testbed.ports import LOCAL, free_ports
from tests.unit.stores.scripted import Act, Answer, answer, scripted

from .environment import by_subject, failed, readable


async def look(*script: Answer, seconds: float = 5) -> tuple[Findings, list[str]]:
    findings = Findings("manager")
    async with scripted(*script) as server:
        url = f"http://somebody:hunter2@{LOCAL}:{server.port}/base"
        await look_at_manager(readable(MANAGER_URL=url), seconds=seconds, findings=findings)
    return findings, server.request_lines()


async def told(url: str) -> Findings:
    findings = Findings("manager")
    await look_at_manager(readable(MANAGER_URL=url), seconds=5, findings=findings)
    return findings


@pytest.mark.parametrize(
    ("finished", "text"), [("true", "are finished"), ("false", "not finished")]
)
async def test_one_that_knows_the_step_is_asked_what_run_asks(finished: str, text: str) -> None:
    findings, asked = await look(answer(200, f'{{"finished": {finished}}}'.encode()))
    assert asked == ["GET /base/pipeline/hash/edges/upstream_finished HTTP/1.1"]
    assert text in by_subject(findings, Outcome.OK)["manager"].detail


@pytest.mark.parametrize("status", [404, 409])
async def test_one_that_does_not_know_it_fails(status: int) -> None:
    findings, _ = await look(answer(status))
    assert "does not know this pipeline" in failed(findings)["manager"].detail


@pytest.mark.parametrize(
    "said", [answer(500), answer(302), answer(200, b"<html>"), answer(200, b"{}"), b"nonsense\r\n"]
)
async def test_another_answer_fails(said: bytes) -> None:
    findings, _ = await look([said, Act.CLOSE])
    assert failed(findings).keys() == {"manager"}
    assert failed(findings)["manager"].remedy


async def test_one_that_is_silent_is_not_waited_for() -> None:
    findings, _ = await look([Act.SILENCE], seconds=0.2)
    assert "no answer within 0.2 s" in failed(findings)["manager"].detail


async def test_one_that_is_not_there_fails() -> None:
    (port,) = free_ports(1)
    findings = await told(f"http://somebody:hunter2@{LOCAL}:{port}")
    assert failed(findings)["manager"].detail.startswith(f"http://{LOCAL}:{port}: ")


async def test_none_is_fine_and_a_pretended_one_a_warning() -> None:
    assert by_subject(await told(""))["manager"].outcome is Outcome.OK
    assert by_subject(await told("http://dummy"))["manager"].outcome is Outcome.WARNING
    assert by_subject(await told("no url"))["manager"].outcome is Outcome.UNKNOWN
