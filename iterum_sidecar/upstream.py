"""The upstream watch: who knows whether all earlier steps are finished, and how it is asked (contract, section 5)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

import msgspec
import trio

from iterum_sidecar.exit_codes import ManagerForgot
from iterum_sidecar.shortages import is_shortage
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.tls import tls_advice

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

__all__ = ["ManagerWatch", "NoManager", "PretendedManager", "Upstream", "watch_for"]

_log = get_log(__name__)

#: Seconds between two questions.
ASK_EVERY = 1.0
#: Seconds that one question may take.
ANSWER_DEADLINE = 10.0
#: Seconds of 404 or 409, after it had answered, after which a manager has forgotten the pipeline (it keeps its state in memory).
FORGOTTEN_AFTER = 600.0
#: Seconds between two lines about a manager that does not answer.
SAY_EVERY = 60.0
_NO_DESCRIPTOR = os.strerror(errno.EMFILE)
#: The question at which a pretended manager says finished, as the Go sidecar has it.
PRETENDED_QUESTIONS = 5


class Upstream(Protocol):
    """Someone who can tell that nothing new will be put on the input queue."""

    async def wait_until_finished(self) -> None:
        """Return when all earlier steps are finished.

        Raises:
            ManagerForgot: nobody will ever tell.
        """
        ...


class NoManager:
    """Nobody tells: the sidecar serves until it is told to stop."""

    async def wait_until_finished(self) -> None:
        """Never return."""
        await trio.sleep_forever()


class PretendedManager:
    """What a MANAGER_URL that contains `dummy` stands for: finished at the fifth question."""

    async def wait_until_finished(self) -> None:
        """Return after as many questions as the Go sidecar would have asked."""
        for _ in range(PRETENDED_QUESTIONS):
            await trio.sleep(ASK_EVERY)


class _Answer(msgspec.Struct):
    finished: bool


class ManagerWatch:
    """Asks Iterum's manager once a second; `is_idle` tells whether nothing is in flight here.

    An https manager is verified as `ssl_context` says, or by the HTTP client's own authorities where that is None.
    """

    def __init__(
        self,
        url: str,
        pipeline_hash: str,
        step: str,
        is_idle: Callable[[], bool],
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        # Without what may stand before it: a password.
        self._peer = urlsplit(url).netloc.rpartition("@")[2]
        self._ssl_context = ssl_context
        self._address = f"{url}/pipeline/{quote(pipeline_hash, safe='')}/{quote(step, safe='')}/upstream_finished"
        self._is_idle = is_idle
        self._answered = False
        self._unknown_since: float | None = None
        self._failing_since: float | None = None
        self._said = -SAY_EVERY

    async def wait_until_finished(self) -> None:
        """Ask until the manager says so, however long it is away meanwhile.

        Raises:
            ManagerForgot: it had answered, has not known the pipeline for ten minutes, and nothing is in flight here.
        """
        # Imported once the sidecar is at work: it takes 30 ms and more, and the first output does not need it.
        while (httpx2 := await self._import()) is None:  # noqa: ASYNC110 - nobody tells when there is a descriptor
            await trio.sleep(ASK_EVERY)

        # Loading the authorities takes 20 ms of CPU; a plain http:// manager needs none.
        verify = self._address.startswith("https:") and (self._ssl_context or True)
        async with httpx2.AsyncClient(timeout=ANSWER_DEADLINE, verify=verify) as client:
            while True:
                try:
                    # httpx's own timeout is one for each read; an answer may trickle.
                    with trio.fail_after(ANSWER_DEADLINE):
                        response = await client.get(self._address)
                except (httpx2.HTTPError, trio.TooSlowError) as error:
                    advice = tls_advice(error, "the host in MANAGER_URL")
                    text = f": {error}" if str(error) else ""
                    self._failed(f"{self._peer}: {type(error).__name__}{text}{advice}")
                except (OSError, ImportError) as error:
                    # The first question imports more.
                    self._failed_for_want(error)
                else:
                    if self._is_finished(response.status_code, response.content):
                        return
                await trio.sleep(ASK_EVERY)

    async def _import(self) -> Any:  # noqa: ANN401 - as `_import_httpx2`
        try:
            return await trio.to_thread.run_sync(_import_httpx2)
        except (OSError, ImportError) as error:
            self._failed_for_want(error)
            return None

    def _failed_for_want(self, error: OSError | ImportError) -> None:
        """Note that there was no descriptor, or no memory, to ask with; raise anything else."""
        # Where a library in C cannot be opened, only the text says why.
        is_want = is_shortage(error) if isinstance(error, OSError) else _NO_DESCRIPTOR in str(error)
        if not is_want:
            raise error
        self._failed(f"{self._peer}: it cannot be asked: {error}")

    def _is_finished(self, status: int, body: bytes) -> bool:
        if status == 200:
            try:
                answer = msgspec.json.decode(body, type=_Answer)
            except (msgspec.DecodeError, RecursionError) as error:
                self._failed(f"an answer that cannot be read: {error}")
                return False
            self._succeeded()
            return answer.finished
        if status in {404, 409}:
            self._does_not_know(status)
        else:
            self._failed(f"HTTP {status}")
        return False

    def _succeeded(self) -> None:
        if self._failing_since is not None:
            _log.info("the manager answers again")
        self._answered = True
        self._unknown_since = self._failing_since = None
        self._said = -SAY_EVERY

    def _does_not_know(self, status: int) -> None:
        now = trio.current_time()
        if self._unknown_since is None:
            self._unknown_since = now
        unknown = now - self._unknown_since
        if self._answered and unknown >= FORGOTTEN_AFTER and self._is_idle():
            raise ManagerForgot(
                f"the manager has answered {status} for {unknown:.0f} s and knows this pipeline no longer"
            )
        self._failed(f"HTTP {status}: it does not know this pipeline", unknown=True)

    def _failed(self, reason: str, *, unknown: bool = False) -> None:
        if not unknown:
            self._unknown_since = None
        now = trio.current_time()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._said >= SAY_EVERY:
            self._said = now
            _log.warning(
                "the manager does not tell whether upstream is finished; asking on",
                reason=reason,
                seconds=round(now - self._failing_since),
            )


def watch_for(
    manager_url: str,
    pipeline_hash: str,
    step: str,
    is_idle: Callable[[], bool],
    ssl_context: ssl.SSLContext | None = None,
) -> Upstream:
    """Return the watch that a MANAGER_URL asks for; `ssl_context` as in `ManagerWatch`."""
    if not manager_url:
        return NoManager()
    if "dummy" in manager_url:
        return PretendedManager()
    return ManagerWatch(manager_url, pipeline_hash, step, is_idle, ssl_context)


def _import_httpx2() -> Any:  # noqa: ANN401 - a module has no better type than its own
    import httpx2

    # What sends is imported by the first of these, and takes as long again: better in this thread than in the next client.
    httpx2.AsyncHTTPTransport(verify=False)
    return httpx2
