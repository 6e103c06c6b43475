"""The pipeline's config files: fetched in the background to where pyterum looks for them, whole or not at all.

One that is missing is asked for again with backoff, because the objects may come after the pods, and told once,
because a pipeline's files are named to every step although perhaps no one uploads them (contract, section 6).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.removal import remove_tree
from iterum_sidecar.shortages import is_shortage
from iterum_sidecar.stores.port import StoreError, StoreUnavailable
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iterum_sidecar.stores.port import Store
    from iterum_sidecar.volume import Volume

__all__ = ["CONFIG_PREFIX", "fetch_config_files"]

_log = get_log(__name__)

CONFIG_PREFIX = "iterum_config/"

#: Seconds before a missing file is asked for again; doubled up to the second figure. pyterum looks every 5 s.
FIRST_DELAY = 1.0
LONGEST_DELAY = 30.0
#: The most where it is the store that is away: after its return, work goes on within 5 s.
LONGEST_DELAY_OF_OUTAGE = 4.0


async def fetch_config_files(
    files: Mapping[str, str], *, store: Store, bucket: str, volume: Volume, directory: str
) -> None:
    """Place every file of `files` in `directory` of the volume; return when all are there."""
    async with trio.open_nursery() as nursery:
        for file in dict.fromkeys(files.values()):
            nursery.start_soon(_fetch, file, store, bucket, volume, directory)


async def _fetch(file: str, store: Store, bucket: str, volume: Volume, directory: str) -> None:
    parent, _, name = f"{directory}/{file}".rpartition("/")
    target = volume.make_public_directory(parent)
    # Hidden, and in the same directory, so that the rename that shows the file is one step.
    temporary = f".{name}.partial"[-255:]
    delay = FIRST_DELAY
    told = False
    try:
        while True:
            try:
                await _fetch_once(f"{CONFIG_PREFIX}{file}", store, bucket, target, temporary, name)
            except (StoreError, OSError) as error:
                if isinstance(error, OSError) and not is_shortage(error):
                    raise VolumeUnusable(
                        f"the config file {name} cannot be written: {error.strerror}"
                    ) from None
                if not told:
                    told = True
                    _log.warning(
                        "a config file cannot be had yet; asking on", file=file, reason=str(error)
                    )
                is_away = isinstance(error, StoreUnavailable)
                delay = min(delay, LONGEST_DELAY_OF_OUTAGE if is_away else LONGEST_DELAY)
                await trio.sleep(delay)
                delay *= 2
            else:
                _log.info("config file is there", file=file)
                return
    finally:
        os.close(target)


async def _fetch_once(
    key: str, store: Store, bucket: str, target: int, temporary: str, name: str
) -> None:
    # Left by an earlier life, or put there by somebody: to open a FIFO would wait for its reader.
    remove_tree(temporary, target)
    descriptor = os.open(
        temporary,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o666,
        dir_fd=target,
    )
    try:
        await store.fetch(bucket, key, descriptor)
    except BaseException:
        os.unlink(temporary, dir_fd=target)
        raise
    finally:
        os.close(descriptor)
    os.rename(temporary, name, src_dir_fd=target, dst_dir_fd=target)
