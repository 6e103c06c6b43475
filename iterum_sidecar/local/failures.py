"""Fragments that a step could not finish: set aside with their files, the reason, and the end of the step's log."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from iterum_sidecar.local.log_tail import last_lines
from iterum_sidecar.local.summary import Failure
from iterum_sidecar.local.wording import in_words_of_a_pipeline
from iterum_sidecar.messages import decode_remote_fragment
from iterum_sidecar.removal import remove_folder
from iterum_sidecar.stores.port import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.local.store import LocalStore

__all__ = ["forget_failure", "place_of", "set_aside"]

#: Enough of an ID to tell any two fragments of a run apart.
_ID_LENGTH = 16


def place_of(failed: Path, step: str, fragment_id: str) -> Path:
    """Return the folder of a fragment that a step could not finish."""
    return failed / step / fragment_id[:_ID_LENGTH]


async def set_aside(
    failed: Path, step: str, description: bytes, reason: str, log: Path | None, store: LocalStore
) -> Failure:
    """Leave the input files of a fragment, the reason and the last lines of the log in a folder, and return what to tell.

    A file that cannot be had is named among the reasons.

    Raises:
        OSError: the folder cannot be written to.
    """
    reason = in_words_of_a_pipeline(reason)
    fragment = decode_remote_fragment(description)
    place = place_of(failed, step, fragment.metadata.fragment_id)
    remove_folder(place)
    inputs = place / "input"
    inputs.mkdir(parents=True)
    missing = []
    for file in fragment.files:
        path = inputs / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            await store.fetch(file.bucket, file.path, descriptor)
        except StoreError as error:
            path.unlink()
            missing.append(f"{file.name} is not here: {error}")
        finally:
            os.close(descriptor)
    (place / "fragment.json").write_bytes(description + b"\n")
    text = "\n".join([f"{step} could not finish this fragment: {reason}", *missing])
    lines = [] if log is None else last_lines(log)
    if lines:
        text += f"\n\nThe last lines of {log}:\n\n" + "\n".join(lines)
    (place / "reason.txt").write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")
    return Failure(step, [file.name for file in fragment.files], reason, str(place))


def forget_failure(failed: Path, fragment_id: str) -> None:
    """Remove the folder of a fragment that is tried again, whichever step it was, and the folders above that are empty by that."""
    for place in failed.glob(f"*/{fragment_id[:_ID_LENGTH]}"):
        with suppress(OSError):
            remove_folder(place)
            place.parent.rmdir()
            failed.rmdir()
