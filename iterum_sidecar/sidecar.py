"""The row of stages in one nursery: the only place where the whole shape can be read.

    broker ─► intake ─► download ─► handout ═(socket)═► transformation
                                                            ║
    broker ◄─ publish ◄─ upload ◄─ collect ◄═════(socket)═══╝
       └──────────────► settle: acknowledge, remove the files

Each arrow is a memory channel. Shutdown is the same walk: a stage whose senders have closed finishes what it has, closes
its own channels and returns. The channels that lead to settle and to handout have no bound of their own: what travels
there is one entry for each fragment in flight, which the window bounds. The file is as long as the row is wide: each stage is made here
once with its ports, and joined once with its channels.
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar.cargo import (
    FragmentEntry,
    HandoutNews,
    IntakeNews,
    OutputCargo,
    Parcel,
    Parting,
)
from iterum_sidecar.config_files import fetch_config_files
from iterum_sidecar.deaths import BLAME_AFTER, Deaths
from iterum_sidecar.editions import ATTEMPTS_HEADER
from iterum_sidecar.exit_codes import DrainDeadlinePassed, TransformationLost
from iterum_sidecar.freight import Freight
from iterum_sidecar.hangs import Hangs
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.last_look import look_once_more
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.roster import Roster
from iterum_sidecar.shortages import VOLUME_PATIENCE, Shortages
from iterum_sidecar.stages import upstream as upstream_stage
from iterum_sidecar.stages.collect import UPLOADS_WAITING, Collect
from iterum_sidecar.stages.download import Download
from iterum_sidecar.stages.handout import Handout
from iterum_sidecar.stages.intake import FIRST_WINDOW, Intake
from iterum_sidecar.stages.publish import Publish
from iterum_sidecar.stages.settle import Settle
from iterum_sidecar.stages.upload import RESULTS_AT_A_TIME, Upload
from iterum_sidecar.store_faults import StoreFaults
from iterum_sidecar.stores.port import StoreError
from iterum_sidecar.telemetry.health import Health
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.unix_sockets import Listener, check_unused
from iterum_sidecar.volume import Volume
from iterum_sidecar.volume_budget import VolumeBudget

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from iterum_sidecar.brokers.port import Broker, Consumer
    from iterum_sidecar.cargo import FragmentLedger, FragmentRoster
    from iterum_sidecar.hangs import EndTransformation
    from iterum_sidecar.patience import Patience
    from iterum_sidecar.settings import Settings
    from iterum_sidecar.stores.port import Store
    from iterum_sidecar.telemetry.tally import Tally
    from iterum_sidecar.upstream import Upstream

__all__ = ["Sidecar", "queues_of"]

_log = get_log(__name__)


def queues_of(settings: Settings) -> list[str]:
    """Return the queues that must be there before work begins."""
    lineage = [settings.lineage_queue] if settings.lineage else []
    return [
        settings.input_queue,
        settings.output_queue,
        *settings.queue_mapping.values(),
        *lineage,
    ]


class Sidecar:
    """One life of the sidecar beside one transformation.

    The ports are given from outside: `open_broker` is entered once the sockets listen, `upstream` is asked for a watch
    on the ledger that it is given. `identity` names the outputs, by the pipeline's hash and the step's name unless told otherwise.
    `pause_on_dead_letters` is for queues that outlive the program; where a person watches, a pause helps nobody.
    `blame_after` are the seconds within which connections that close died together, and a stop makes it no death.
    `standstill_after` are the seconds of starvation after which a prefetch that is less than a batch ends the program: in a pod never,
    as another one, which comes late, may take what waits.
    `end_transformation` ends the transformation when a fragment of it hangs, as `Hangs` says, where there is somebody who can.
    `volume_patience` are the seconds for which a full volume is waited for, if nothing of ours will empty it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        open_broker: Callable[[], AbstractAsyncContextManager[Broker]],
        store: Store,
        store_patience: Patience,
        upstream: Callable[[FragmentLedger], Upstream],
        tally: Tally,
        identity: OutputIdentity | None = None,
        pause_on_dead_letters: bool = True,
        blame_after: float = BLAME_AFTER,
        standstill_after: float = math.inf,
        volume_patience: float = VOLUME_PATIENCE,
        end_transformation: EndTransformation | None = None,
    ) -> None:
        self._end_transformation = end_transformation
        self._blame_after = blame_after
        self._standstill_after = standstill_after
        self._pause_on_dead_letters = pause_on_dead_letters
        self._settings = settings
        self._open_broker = open_broker
        self._store = store
        self._tally = tally
        self._ledger: FragmentLedger = Ledger(
            identity or OutputIdentity(settings.pipeline_hash, settings.step),
            attempts_allowed=settings.attempts,
        )
        self._roster: FragmentRoster = Roster(settings.handout_depth, settings.attempts)
        self._upstream = upstream(self._ledger)
        self._faults = StoreFaults(store, settings.output_bucket, store_patience)
        self._shortages = Shortages(volume_patience)
        self._freight = Freight(settings.frame_limit)
        self._budget: VolumeBudget | None = None
        self._stop = trio.Event()
        self._killed = trio.Event()
        self.over = trio.Event()
        """Set when `run` has ended, in whatever way."""
        self._scope = trio.CancelScope()
        self.is_done = False
        """Whether the step is done, once `run` has returned: false after a drain that left something to do."""
        self._told_at_the_end = False
        self._listening = False
        self._broker: Broker | None = None
        self._aborted = False
        self._intake: Intake | None = None
        self._collect: Collect | None = None
        self._channels: dict[str, trio.MemorySendChannel[Any]] = {}

    @property
    def has_said_kill(self) -> bool:
        """Whether the transformation has been told that nothing more comes."""
        return self._killed.is_set()

    @property
    def has_been_connected(self) -> bool:
        """Whether the transformation has ever connected."""
        return self._roster.ever_sat

    @property
    def fragments_out(self) -> int:
        """How many fragments the transformation has and has not finished."""
        return self._ledger.out()

    def health(self) -> Health:
        """Return what is there, as it is now, of all that the work needs."""
        return Health(
            listening=self._listening,
            broker=self._broker is not None and not self._broker.trouble(),
            store=self._faults.available,
            transformation=self._roster.seats > 0,
            draining=self._stop.is_set() or self._killed.is_set(),
        )

    @property
    def connections(self) -> int:
        """How many connections the transformation has to the input socket."""
        return self._roster.seats

    @property
    def window(self) -> int:
        """How many fragments may be in flight; 0 before the work begins."""
        return self._intake.window if self._intake else 0

    @property
    def volume_held(self) -> int:
        """How many bytes of input files are on the volume, or on their way there."""
        return self._budget.held if self._budget else 0

    @property
    def volume_budget(self) -> float:
        """How many of them there may be: infinite without a bound, and 0 before the work begins."""
        return self._budget.limit if self._budget else 0

    def in_flight(self) -> list[FragmentEntry]:
        """Return what has been let in and is not settled."""
        return list(self._ledger)

    def channel_depths(self) -> dict[str, int]:
        """Return how many items wait in each channel between the stages, or to be let into it, by the name of where it leads."""
        depths = {}
        for name, channel in self._channels.items():
            counts = channel.statistics()
            depths[name] = counts.current_buffer_used + counts.tasks_waiting_send
        return depths

    @property
    def gathered(self) -> int:
        """How many fragments the transformation has said that it gathers at a time; 0 if it has not."""
        return self._roster.gathered

    def drain(self) -> None:
        """Take nothing new, hand out nothing more, and finish what the transformation has, within the drain deadline."""
        if self._stop.is_set():
            return
        self._told_at_the_end = self._roster.told_kill
        self._stop.set()
        self._roster.take_back()
        seconds = self._settings.drain_seconds
        _log.info(
            "draining",
            with_transformation=self._ledger.out(),
            in_flight=len(self._ledger),
            deadline_seconds=seconds,
        )
        if self._broker is not None:
            self._scope.deadline = trio.current_time() + seconds
        else:
            self._aborted = True
            self._scope.cancel("told to stop before the work began")

    def abort(self) -> None:
        """End at once; what is in flight goes back to the queue."""
        self._stop.set()
        self._roster.take_back()
        self._aborted = True
        self._scope.cancel("told to end at once")

    async def run(self) -> None:
        """Work until this step is done, or drained after `drain`, or ended by `abort`.

        Raises:
            SidecarError: any other end; the transformation has been told kill, unless the settings say otherwise.
        """
        settings = self._settings
        with ExitStack() as stack:
            stack.callback(self.over.set)
            for name in (settings.input_socket, settings.output_socket):
                # Before anything of the volume is cleared: it may be that of a sidecar at work.
                check_unused(os.path.join(settings.volume, name))
            volume = stack.enter_context(
                Volume(settings.volume, protected=(settings.config_directory,))
            )
            os.close(volume.make_public_directory(settings.config_directory))
            inputs, outputs = (
                stack.enter_context(self._listen(volume, name))
                for name in (settings.input_socket, settings.output_socket)
            )
            self._listening = True
            with self._scope:
                await self._serve(volume, inputs, outputs)
            if self._scope.cancelled_caught and not self._aborted:
                raise DrainDeadlinePassed(
                    f"{settings.drain_seconds:g} s were not enough to finish {len(self._ledger)} fragments"
                    " (SIDECAR_DRAIN_SECONDS); they go back to the queue"
                )

    def _listen(self, volume: Volume, name: str) -> Listener:
        parent, _, _ = name.rpartition("/")
        if parent:
            os.close(volume.make_public_directory(parent))
        return Listener(os.path.join(self._settings.volume, name))

    async def _serve(self, volume: Volume, inputs: Listener, outputs: Listener) -> None:
        """Serve the input socket around everything else, so that whoever connects hears the kill message in the end."""
        settings = self._settings
        to_collect, partings = trio.open_memory_channel[Parting](math.inf)
        handout = Handout(
            listener=inputs,
            ledger=self._ledger,
            roster=self._roster,
            tally=self._tally,
            start_timeout=settings.transformation_start_timeout,
            return_timeout=settings.transformation_return_timeout,
            kill_timeout=settings.kill_timeout,
            kill_on_error=settings.kill_on_error,
            hangs=Hangs(
                settings.fragment_timeout,
                self._roster,
                to_collect.send_nowait,
                self._end_transformation,
            ),
        )
        async with trio.open_nursery() as around:
            around.start_soon(handout.serve, to_collect)
            around.start_soon(self._prepare_store, volume)
            around.start_soon(volume.large_files.keep_closing)
            await self._work(volume, outputs, handout, partings)
            around.cancel_scope.cancel("the work is over")

    async def _prepare_store(self, volume: Volume) -> None:
        """Make the output bucket and fetch the config files, while the work begins already."""
        settings = self._settings
        while True:
            try:
                await self._store.ensure_bucket(settings.output_bucket)
                break
            except StoreError as error:
                await self._faults.wait(error)
        self._faults.succeeded()
        await fetch_config_files(
            settings.config_files,
            store=self._store,
            bucket=settings.config_bucket,
            volume=volume,
            directory=settings.config_directory,
        )

    async def _work(
        self,
        volume: Volume,
        outputs: Listener,
        handout: Handout,
        partings: trio.MemoryReceiveChannel[Parting],
    ) -> None:
        """Open the broker and the queue's line around the row, and look once more when the row is over."""
        settings = self._settings
        window = settings.prefetch or FIRST_WINDOW
        async with (
            self._open_broker() as broker,
            broker.consume(settings.input_queue, window) as consumer,
        ):
            self._broker = broker
            _log.info("at work", input_queue=settings.input_queue, window=window)
            await self._run_row(volume, outputs, handout, partings, broker, consumer, window)
            over = self._is_over()
            if over:
                if self._tally.given_back:
                    raise TransformationLost(
                        f"the transformation ended with {self._tally.given_back} fragments undone; they are back in the queue"
                    )
                await look_once_more(broker, consumer, self._ledger)
            await broker.flush()
            self.is_done = over

    async def _run_row(
        self,
        volume: Volume,
        outputs: Listener,
        handout: Handout,
        partings: trio.MemoryReceiveChannel[Parting],
        broker: Broker,
        consumer: Consumer,
        window: int,
    ) -> None:
        """Join the stages, start each with its ends, and return when the last has returned."""
        settings, store, ledger = self._settings, self._store, self._ledger
        faults, tally = self._faults, self._tally
        self._budget = budget = VolumeBudget(settings.volume_budget, volume.available)
        self._intake = intake = Intake(
            consumer=consumer,
            broker=broker,
            ledger=ledger,
            tally=tally,
            window=window,
            fixed=settings.prefetch > 0,
            attempts_allowed=settings.attempts,
            pause_on_dead_letters=self._pause_on_dead_letters,
            standstill_after=self._standstill_after,
            allow_more_bytes=budget.allow_more,
        )
        download = Download(
            store=store,
            volume=volume,
            budget=budget,
            shortages=self._shortages,
            ledger=ledger,
            faults=faults,
            tally=tally,
        )
        self._collect = collect = Collect(
            listener=outputs,
            volume=volume,
            ledger=ledger,
            roster=self._roster,
            tally=tally,
            shortages=self._shortages,
            freight=self._freight,
            output_queue=settings.output_queue,
            queue_mapping=settings.queue_mapping,
            frame_limit=settings.frame_limit,
            kill_timeout=settings.kill_timeout,
            return_timeout=settings.transformation_return_timeout,
            deaths=Deaths(
                ledger=ledger, roster=self._roster, tally=tally, blame_after=self._blame_after
            ),
        )
        upload = Upload(
            store=store,
            volume=volume,
            ledger=ledger,
            faults=faults,
            tally=tally,
            shortages=self._shortages,
            freight=self._freight,
            bucket=settings.output_bucket,
        )
        publish = Publish(
            broker=broker,
            ledger=ledger,
            tally=tally,
            freight=self._freight,
            step=settings.step,
            lineage_queue=settings.lineage_queue if settings.lineage else None,
        )
        settle = Settle(
            broker=broker,
            volume=volume,
            ledger=ledger,
            tally=tally,
            step=settings.step,
            input_queue=settings.input_queue,
            dead_letter_queue=settings.dead_letter_queue,
            attempts_header=ATTEMPTS_HEADER,
        )
        await self._join(intake, download, handout, collect, upload, publish, settle, partings)

    async def _join(
        self,
        intake: Intake,
        download: Download,
        handout: Handout,
        collect: Collect,
        upload: Upload,
        publish: Publish,
        settle: Settle,
        partings: trio.MemoryReceiveChannel[Parting],
    ) -> None:
        """Lay the channels between the stages and run them all."""
        stop, killed = self._stop, self._killed
        to_download, admitted = trio.open_memory_channel[FragmentEntry](math.inf)
        to_handout, ready = trio.open_memory_channel[FragmentEntry](math.inf)
        to_upload, results = trio.open_memory_channel[OutputCargo](UPLOADS_WAITING)
        to_publish, parcels = trio.open_memory_channel[Parcel](RESULTS_AT_A_TIME)
        to_settle, fallen = trio.open_memory_channel[FragmentEntry](math.inf)
        done_to_handout, done = trio.open_memory_channel[HandoutNews](math.inf)
        again_to_handout, again = trio.open_memory_channel[FragmentEntry](math.inf)
        to_intake, news = trio.open_memory_channel[IntakeNews](math.inf)
        self._channels = {
            "intake": to_intake,
            "download": to_download,
            "handout": to_handout,
            "handout_done": done_to_handout,
            "handout_again": again_to_handout,
            "upload": to_upload,
            "publish": to_publish,
            "settle": to_settle,
        }

        async with trio.open_nursery() as watching, trio.open_nursery() as row:
            watching.start_soon(
                partial(upstream_stage.run, upstream=self._upstream, news=to_intake.clone())
            )
            for stage in (
                partial(
                    intake.run,
                    news=news,
                    to_download=to_download,
                    to_settle=to_settle.clone(),
                    stop=stop,
                ),
                partial(
                    download.run,
                    from_intake=admitted,
                    to_handout=to_handout,
                    to_settle=to_settle.clone(),
                    stop=stop,
                ),
                partial(
                    handout.run,
                    from_download=ready,
                    from_collect=done,
                    from_settle=again,
                    to_settle=to_settle.clone(),
                    news=to_intake.clone(),
                    killed=killed,
                ),
                partial(
                    collect.run,
                    partings=partings,
                    to_upload=to_upload,
                    to_handout=done_to_handout,
                    to_settle=to_settle.clone(),
                    news=to_intake.clone(),
                    killed=killed,
                    stop=stop,
                ),
                partial(
                    upload.run,
                    from_collect=results,
                    to_publish=to_publish,
                    to_settle=to_settle.clone(),
                ),
                partial(publish.run, from_upload=parcels, to_settle=to_settle),
            ):
                row.start_soon(stage)
            await settle.run(fallen=fallen, to_handout=again_to_handout, news=to_intake)
            watching.cancel_scope.cancel("the row is over")

    def _is_over(self) -> bool:
        """Whether the row ended because there was nothing left to do.

        A stop that came when the kill message had been said is too late to leave anything undone, if that was answered. So it is with
        a native sidecar: its pod stops it as soon as the transformation has ended.
        """
        if not self._stop.is_set():
            return True
        answered = self._collect is not None and self._collect.kill_answered
        return self._told_at_the_end and answered and not self._tally.given_back
