"""The manager: whether it answers, and knows this step. It is asked what `run` asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import httpx2
import msgspec
import trio

from iterum_sidecar.tls import has_tls_settings, tls_advice

if TYPE_CHECKING:
    from iterum_sidecar.check.findings import Findings
    from iterum_sidecar.check.variables import Readable

__all__ = ["look_at_manager"]

_UNKNOWN_THERE = frozenset({404, 409})


class _Answer(msgspec.Struct):
    finished: bool


async def look_at_manager(readable: Readable, *, seconds: float, findings: Findings) -> None:
    """Add what there is to say of the manager, which has `seconds` to answer."""
    settings = readable.settings
    if reason := readable.lacks("MANAGER_URL", "PIPELINE_HASH", "ITERUM_NAME"):
        findings.unknown("manager", reason)
    elif not settings.manager_url:
        findings.ok("manager", "none: `run` serves until it is stopped")
    elif "dummy" in settings.manager_url:
        findings.warning(
            "manager",
            "pretended (MANAGER_URL contains dummy): `run` takes upstream for finished after five seconds",
            "set MANAGER_URL to a manager, or leave it empty, unless this is a trial",
        )
    elif reason := readable.lacks(
        "SIDECAR_CA_FILE", "SIDECAR_CLIENT_CERTIFICATE", "SIDECAR_CLIENT_KEY", "SIDECAR_TLS_VERIFY"
    ):
        findings.unknown("manager", reason)
    else:
        await _ask(readable, seconds, findings)


async def _ask(readable: Readable, seconds: float, findings: Findings) -> None:
    settings = readable.settings
    shown = _without_user(settings.manager_url)
    step = f"{quote(settings.pipeline_hash, safe='')}/{quote(settings.step, safe='')}"
    verify = readable.context if has_tls_settings(settings) and readable.context else True
    response = None
    reason, remedy = (
        f"no answer within {seconds:g} s",
        "see to host and port in MANAGER_URL, to network policies and firewalls",
    )
    try:
        with trio.move_on_after(seconds):
            async with httpx2.AsyncClient(timeout=seconds, verify=verify) as client:
                response = await client.get(
                    f"{settings.manager_url}/pipeline/{step}/upstream_finished"
                )
    except httpx2.TimeoutException:
        pass
    except httpx2.InvalidURL:
        # It quotes what it finds wrong, which may be a password.
        reason, remedy = "its URL cannot be read", "mend MANAGER_URL"
    except httpx2.HTTPError as error:
        reason = str(error) or type(error).__name__
        remedy = (
            tls_advice(error, "MANAGER_URL").removeprefix("; ") or "start it, or mend MANAGER_URL"
        )
    if response is None:
        findings.failed("manager", f"{shown}: {reason}", remedy)
        return
    _judge(response.status_code, response.content, shown, findings)


def _judge(status: int, body: bytes, shown: str, findings: Findings) -> None:
    if status in _UNKNOWN_THERE:
        findings.failed(
            "manager",
            f"{shown} answers {status}: it does not know this pipeline, or has stopped it",
            "submit the pipeline again (a manager keeps its state in memory), or mend PIPELINE_HASH and ITERUM_NAME",
        )
        return
    try:
        if status != 200:
            raise ValueError(f"HTTP {status}")
        answer = msgspec.json.decode(body, type=_Answer)
    except (ValueError, RecursionError) as error:
        findings.failed(
            "manager",
            f"{shown}: {error}",
            "see whether MANAGER_URL leads to Iterum's manager, and to its log",
        )
    else:
        finished = "are finished" if answer.finished else "are not finished yet"
        findings.ok("manager", f"{shown} knows this step; the steps before it {finished}")


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
