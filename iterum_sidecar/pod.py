"""The sidecar in its pod: settings from the environment, the real broker and store, signals, and the exit code."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from iterum_sidecar.brokers.amqp import (
    NOTICED_AFTER,
    QueuePolicy,
    has_noticed,
    open_amqp_broker,
)
from iterum_sidecar.brokers.reconnecting import open_reconnecting_broker
from iterum_sidecar.early_stop import receive_instead
from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.exit_codes import BadConfiguration, ExitCode, SidecarError
from iterum_sidecar.patience import Patience
from iterum_sidecar.secret_source import SecretSource
from iterum_sidecar.settings import read_settings
from iterum_sidecar.sidecar import Sidecar, queues_of
from iterum_sidecar.stores.s3 import S3Store
from iterum_sidecar.telemetry.health import State
from iterum_sidecar.telemetry.logs import configure, get_log
from iterum_sidecar.telemetry.marker import Marker, keep_marker
from iterum_sidecar.telemetry.subject import Subject
from iterum_sidecar.telemetry.tally import Tally
from iterum_sidecar.tls import has_tls_settings, ssl_context_of, tls_warnings
from iterum_sidecar.upstream import watch_for

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping

    from iterum_sidecar.cargo import FragmentLedger
    from iterum_sidecar.settings import Settings
    from iterum_sidecar.telemetry.health import Word
    from iterum_sidecar.telemetry.tracing import Tracing
    from iterum_sidecar.upstream import Upstream

__all__ = ["run_in_pod"]

_log = get_log(__name__)


class _End(NamedTuple):
    """How the program ends, and what there is to say of it where nobody sees the log."""

    code: ExitCode
    reason: str = ""

    @property
    def word(self) -> Word:
        if self.code is ExitCode.DONE:
            return "done"
        return "stopped" if self.code in {ExitCode.TERMINATED, ExitCode.INTERRUPTED} else "failed"


def run_in_pod(environment: Mapping[str, str]) -> ExitCode:
    """Run one sidecar by what the environment says, to its end, and return how it ended."""
    form = environment.get("SIDECAR_LOG_FORMAT", "")
    configure("info", form if form in {"text", "json"} else "auto")
    with Marker(environment.get("DATA_VOLUME_PATH", "")) as marker:
        marker.show(State("starting"))
        end = _run_marked(environment, marker)
        marker.show(State(end.word, end.reason))
    return end.code


def _run_marked(environment: Mapping[str, str], marker: Marker) -> _End:
    try:
        settings = read_settings(environment)
        tls = ssl_context_of(settings)
        tracing = _open_tracing(settings)
    except BadConfiguration as error:
        for problem in error.problems:
            _log.error(problem)
        _log.error("bad configuration; nothing was opened", problems=len(error.problems))
        return _End(error.exit_code, f"bad configuration: {'; '.join(error.problems)}")
    configure(
        settings.log_level, settings.log_format, step=settings.step, pipeline=settings.pipeline_hash
    )
    for warning in tls_warnings(settings):
        _log.warning(warning)
    secrets = SecretSource(settings, lambda: read_settings(environment))
    return trio.run(_run, settings, tls, secrets, marker, tracing)


def _open_tracing(settings: Settings) -> Tracing | None:
    if not settings.tracing:
        return None
    # Imported here: it is an extra, and costs half of a sidecar's start.
    from iterum_sidecar.telemetry.tracing import open_tracing

    return open_tracing(settings)


async def _run(
    settings: Settings,
    tls: ssl.SSLContext | None,
    secrets: SecretSource,
    marker: Marker,
    tracing: Tracing | None,
) -> _End:
    started = trio.current_time()
    tally = Tally() if tracing is None else Tally(times=tracing.times)
    signals: list[signal.Signals] = []
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        receive_instead()
        end = _End(ExitCode.DONE)
        done = False
        try:
            async with trio.open_nursery() as nursery:
                done = await _work(
                    settings, tls, secrets, tally, marker, nursery, received, signals
                )
                nursery.cancel_scope.cancel("the work is over")
        except* SidecarError as group:
            end = _tell(group)
        except* Exception as group:
            for error in group.exceptions:
                _log.exception("a fault of the sidecar itself", error)
            end = _End(ExitCode.FAULT, "a fault of the sidecar itself; its log has the traceback")
        if tracing is not None:
            await _close(tracing, received)
        # A stop that came too late to leave anything undone does not count.
        end = _conclude(end, [] if done else signals, settings, tally)
        _log.info(
            "end",
            exit_code=int(end.code),
            meaning=end.code.meaning,
            **tally.summary(trio.current_time() - started),
        )
        return end


async def _work(
    settings: Settings,
    tls: ssl.SSLContext | None,
    secrets: SecretSource,
    tally: Tally,
    marker: Marker,
    nursery: trio.Nursery,
    received: AsyncIterator[int],
    signals: list[signal.Signals],
) -> bool:
    """Run the sidecar to its end, and return whether its step is done; a stop that came meanwhile is in `signals`."""
    services = {
        name: Patience(f"the {name}", settings.service_timeout) for name in ("broker", "store")
    }
    async with S3Store(
        settings.store_host,
        settings.store_port,
        settings.store_access_key,
        settings.store_secret_key,
        session_token=settings.s3_session_token or None,
        region=settings.s3_region,
        addressing="virtual" if settings.s3_addressing == "virtual" else "path",
        ssl_context=tls if settings.store_tls else None,
        server_name=settings.store_server_name,
        renew=secrets.store_credentials,
    ) as store:

        def upstream(ledger: FragmentLedger) -> Upstream:
            return watch_for(
                settings.manager_url,
                settings.pipeline_hash,
                settings.step,
                is_idle=lambda: len(ledger) == 0,
                ssl_context=tls if has_tls_settings(settings) else None,
            )

        sidecar = Sidecar(
            settings,
            open_broker=lambda: open_reconnecting_broker(
                partial(
                    open_amqp_broker,
                    secrets.broker_parameters,
                    ssl_context=tls,
                    queues=queues_of(settings),
                    policy=QueuePolicy(settings.queue_durable, settings.queue_type == "quorum"),
                    patience=services["broker"],
                    name=f"iterum-sidecar {settings.step}",
                ),
                patience=services["broker"],
                refusals=Patience(
                    "the broker's leave",
                    settings.service_timeout,
                    if_it_lasts="see to the permissions of our user, and to the queue",
                ),
                noticed_after=NOTICED_AFTER,
                has_noticed=has_noticed,
            ),
            store=store,
            store_patience=services["store"],
            upstream=upstream,
            tally=tally,
        )
        nursery.start_soon(store.watch_deadlines)
        nursery.start_soon(_obey, received, sidecar, signals)
        subject = Subject(settings, sidecar, tally, services, lambda: store.retried)
        await _start_telling(subject, marker, nursery)
        await sidecar.run()
        return sidecar.is_done


async def _start_telling(subject: Subject, marker: Marker, nursery: trio.Nursery) -> None:
    """Keep the marker on the volume, and serve probes, status and metrics where that is wished.

    Raises:
        AddressUnusable: nothing can listen where SIDECAR_HTTP_ADDRESS says.
    """
    nursery.start_soon(keep_marker, marker, lambda: subject.sidecar.health().state)
    if subject.settings.http_address is not None:
        # Imported here: a sidecar that serves nothing does without it.
        from iterum_sidecar.telemetry.monitor import Monitor, open_listeners

        listeners = await open_listeners(*subject.settings.http_address)
        nursery.start_soon(Monitor(subject).serve, listeners)


async def _obey(
    received: AsyncIterator[int], sidecar: Sidecar, signals: list[signal.Signals]
) -> None:
    """Drain at the first signal; end at once at a second SIGINT. A second SIGTERM changes nothing: clusters send it twice."""
    interrupts = 0
    async for number in received:
        got = signal.Signals(number)
        signals.append(got)
        interrupts += got is signal.SIGINT
        if interrupts > 1:
            _log.warning("interrupted twice; ending at once")
            sidecar.abort()
        elif len(signals) == 1:
            _log.info("told to stop", signal=got.name)
            sidecar.drain()


async def _close(tracing: Tracing, received: AsyncIterator[int]) -> None:
    """Let the last spans be sent. How the program ends is settled, so a signal that comes by now is taken and changes nothing.

    It would otherwise be raised again when nobody receives it any more, and kill the program that has just ended well.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ignore, received)
        await tracing.close()
        nursery.cancel_scope.cancel("the last spans are sent")


async def _ignore(received: AsyncIterator[int]) -> None:
    async for _ in received:
        pass


def _tell(group: BaseExceptionGroup[SidecarError]) -> _End:
    """Log each end once, and return the first: several stages may meet one cause."""
    ends: dict[str, SidecarError] = {}
    for error in leaves_of(group, SidecarError):
        ends.setdefault(str(error), error)
    for error in ends.values():
        _log.error(str(error))
    first = next(iter(ends.values()))
    return _End(first.exit_code, str(first))


def _conclude(end: _End, signals: list[signal.Signals], settings: Settings, tally: Tally) -> _End:
    told = ""
    if tally.dead_letters:
        told = (
            f"fragments were dead-lettered: {tally.dead_letters}, in {settings.dead_letter_queue}"
        )
        _log.error(
            "fragments were dead-lettered",
            count=tally.dead_letters,
            queue=settings.dead_letter_queue,
        )
    if end.code is not ExitCode.DONE:
        return end
    if signals:
        stopped = ExitCode.TERMINATED if signals[0] is signal.SIGTERM else ExitCode.INTERRUPTED
        return _End(stopped, f"told to stop: {signals[0].name}")
    failed = tally.dead_letters and settings.fail_on_dead_letters
    return _End(ExitCode.DEAD_LETTERS if failed else ExitCode.DONE, told)
