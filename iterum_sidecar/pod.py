"""The sidecar in its pod: settings from the environment, the real broker and store, signals, and the exit code."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.brokers.amqp import QueuePolicy, open_amqp_broker
from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.exit_codes import BadConfiguration, ExitCode, SidecarError
from iterum_sidecar.patience import Patience
from iterum_sidecar.settings import read_settings
from iterum_sidecar.sidecar import Sidecar, queues_of
from iterum_sidecar.stores.s3 import S3Store
from iterum_sidecar.telemetry.logs import configure, get_log
from iterum_sidecar.telemetry.tally import Tally
from iterum_sidecar.upstream import watch_for

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping

    from iterum_sidecar.cargo import FragmentLedger
    from iterum_sidecar.settings import Settings
    from iterum_sidecar.upstream import Upstream

__all__ = ["run_in_pod"]

_log = get_log(__name__)


def run_in_pod(environment: Mapping[str, str]) -> ExitCode:
    """Run one sidecar by what the environment says, to its end, and return how it ended."""
    configure("info", "auto")
    try:
        settings = read_settings(environment)
    except BadConfiguration as error:
        for problem in error.problems:
            _log.error(problem)
        _log.error("bad configuration; nothing was opened", problems=len(error.problems))
        return error.exit_code
    configure(
        settings.log_level, settings.log_format, step=settings.step, pipeline=settings.pipeline_hash
    )
    try:
        tls = _tls_context(settings)
    except OSError as error:
        _log.error(
            "SIDECAR_CA_FILE or SIDECAR_CLIENT_CERTIFICATE cannot be read", reason=str(error)
        )
        return ExitCode.CONFIGURATION
    return trio.run(_run, settings, tls)


async def _run(settings: Settings, tls: ssl.SSLContext | None) -> ExitCode:
    started = trio.current_time()
    tally = Tally()
    signals: list[signal.Signals] = []
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        code = ExitCode.DONE
        try:
            async with trio.open_nursery() as nursery:
                await _work(settings, tls, tally, nursery, received, signals)
                nursery.cancel_scope.cancel("the work is over")
        except* SidecarError as group:
            code = _tell(group)
        except* Exception as group:
            for error in group.exceptions:
                _log.exception("a fault of the sidecar itself", error)
            code = ExitCode.FAULT
        code = _conclude(code, signals, settings, tally)
        _log.info(
            "end",
            exit_code=int(code),
            meaning=code.meaning,
            **tally.summary(trio.current_time() - started),
        )
        return code


async def _work(
    settings: Settings,
    tls: ssl.SSLContext | None,
    tally: Tally,
    nursery: trio.Nursery,
    received: AsyncIterator[int],
    signals: list[signal.Signals],
) -> None:
    async with S3Store(
        settings.store_host,
        settings.store_port,
        settings.store_access_key,
        settings.store_secret_key,
        session_token=settings.s3_session_token or None,
        region=settings.s3_region,
        addressing="virtual" if settings.s3_addressing == "virtual" else "path",
        ssl_context=tls if settings.store_tls else None,
    ) as store:

        def upstream(ledger: FragmentLedger) -> Upstream:
            return watch_for(
                settings.manager_url,
                settings.pipeline_hash,
                settings.step,
                is_idle=lambda: len(ledger) == 0,
            )

        sidecar = Sidecar(
            settings,
            open_broker=lambda: open_amqp_broker(
                settings.broker_url,
                ssl_context=tls,
                queues=queues_of(settings),
                policy=QueuePolicy(settings.queue_durable, settings.queue_type == "quorum"),
                patience=Patience("the broker", settings.service_timeout),
                name=f"iterum-sidecar {settings.step}",
            ),
            store=store,
            store_patience=Patience("the store", settings.service_timeout),
            upstream=upstream,
            tally=tally,
        )
        nursery.start_soon(_obey, received, sidecar, signals)
        await sidecar.run()


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


def _tell(group: BaseExceptionGroup[SidecarError]) -> ExitCode:
    """Log each end once, and return the code of the first: several stages may meet one cause."""
    ends: dict[str, SidecarError] = {}
    for error in leaves_of(group, SidecarError):
        ends.setdefault(str(error), error)
    for error in ends.values():
        _log.error(str(error))
    return next(iter(ends.values())).exit_code


def _conclude(
    code: ExitCode, signals: list[signal.Signals], settings: Settings, tally: Tally
) -> ExitCode:
    if tally.dead_letters:
        _log.error(
            "fragments were dead-lettered",
            count=tally.dead_letters,
            queue=settings.dead_letter_queue,
        )
    if code is not ExitCode.DONE:
        return code
    if signals:
        return ExitCode.TERMINATED if signals[0] is signal.SIGTERM else ExitCode.INTERRUPTED
    if tally.dead_letters and settings.fail_on_dead_letters:
        return ExitCode.DEAD_LETTERS
    return code


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return the context for whichever of broker and store speaks TLS, or None if neither does."""
    if not settings.store_tls and not settings.broker_url.startswith("amqps:"):
        return None
    import ssl

    context = ssl.create_default_context(cafile=settings.ca_file or None)
    if settings.client_certificate:
        context.load_cert_chain(settings.client_certificate)
    return context
