"""Probes, status and metrics over HTTP: which path is answered with what."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.exit_codes import AddressUnusable
from iterum_sidecar.telemetry.http import Answer, Question, open_http_listeners, serve_http
from iterum_sidecar.telemetry.metrics import Metrics
from iterum_sidecar.telemetry.status import status_of

if TYPE_CHECKING:
    from typing import NoReturn

    from iterum_sidecar.telemetry.stage_times import Histogram
    from iterum_sidecar.telemetry.subject import Subject

__all__ = ["Monitor", "open_listeners"]

#: Seconds between looks at how late the event loop is.
LAG_EVERY = 1.0
#: Seconds that the host of the address, if it is a name, may take to be found.
RESOLVE_SECONDS = 10.0

_PATHS = "/live /ready /startup /status /metrics"


async def open_listeners(host: str | None, port: int) -> list[trio.SocketListener]:
    """Listen where SIDECAR_HTTP_ADDRESS says; a host of None is every interface.

    Raises:
        AddressUnusable: it is in use, or not an address of this machine.
    """
    try:
        with trio.fail_after(RESOLVE_SECONDS):
            return await open_http_listeners(host, port)
    except OSError as error:
        why = _why(error)
    except trio.TooSlowError:
        why = f"its host was not found within {RESOLVE_SECONDS:g} s"
    raise AddressUnusable(
        f"SIDECAR_HTTP_ADDRESS {host or ''}:{port} cannot be listened on: {why};"
        " set it to a free port of this machine, or leave it unset"
    )


def _why(error: OSError) -> str:
    """Return what is wrong in the system's own words; Trio names one address of several in its own."""
    cause = error.__cause__
    leaf = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause or error
    return (leaf.strerror if isinstance(leaf, OSError) else None) or str(error)


class Monitor:
    """Answers for one sidecar."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._metrics = Metrics(subject)
        self._since = trio.current_time()

    async def serve(self, listeners: list[trio.SocketListener]) -> NoReturn:
        """Answer on the listeners until cancelled, and then close them."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(measure_lag, self._subject.lag)
            await serve_http(listeners, self.answer)

    def answer(self, question: Question) -> Answer:
        """Return what is asked for; it costs a scrape a few milliseconds, and others less."""
        health = self._subject.sidecar.health()
        match question.path:
            case "/live":
                return _text(HTTPStatus.OK, health.state.word)
            case "/ready" if health.ready:
                return _text(HTTPStatus.OK, "ready")
            case "/ready":
                word, detail = health.state
                return _text(
                    HTTPStatus.SERVICE_UNAVAILABLE, f"{word}: {detail}" if detail else word
                )
            case "/startup":
                status = HTTPStatus.OK if health.listening else HTTPStatus.SERVICE_UNAVAILABLE
                return _text(status, health.state.word)
            case "/status":
                uptime = trio.current_time() - self._since
                return Answer(HTTPStatus.OK, "application/json", status_of(self._subject, uptime))
            case "/metrics":
                return self._metrics.answer(question.accept)
            case _:
                return _text(HTTPStatus.NOT_FOUND, f"nothing is here; there are {_PATHS}")


async def measure_lag(lag: Histogram) -> NoReturn:
    """Observe, every second, by how much the event loop wakes this task later than it was to."""
    while True:
        due = trio.current_time() + LAG_EVERY
        await trio.sleep_until(due)
        lag.observe(trio.current_time() - due)


def _text(status: HTTPStatus, said: str) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{said}\n".encode())
