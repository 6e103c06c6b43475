"""The volume: whether `run` can work there, what it will find, and whether somebody else is at work there already.

Nothing that stays is made, and nobody is disturbed: a sidecar that is at work would take a connection for its transformation's.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.settings import MAX_SOCKET_PATH_BYTES
from iterum_sidecar.unix_sockets import state_of_socket
from iterum_sidecar.volume import OWN_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iterum_sidecar.check.findings import Findings
    from iterum_sidecar.check.variables import Readable

__all__ = ["look_at_volume"]

#: Bytes; room for the sockets and a few small files, and less than any real fragment needs in a pod.
LITTLE_SPACE = 100 * 1024 * 1024
#: Left-overs are counted up to here: a volume that is full of them is not walked to its end.
MOST_COUNTED = 10_000


async def look_at_volume(readable: Readable, *, seconds: float, findings: Findings) -> None:
    """Add what there is to say of the volume; a file system that does not answer in `seconds` fails."""
    if reason := readable.lacks("DATA_VOLUME_PATH"):
        findings.unknown("volume", reason)
        return
    with trio.move_on_after(seconds) as scope:
        await trio.to_thread.run_sync(_look, readable, findings, abandon_on_cancel=True)
    if scope.cancelled_caught:
        findings.failed(
            "volume",
            f"{readable.settings.volume} did not answer within {seconds:g} s",
            "see to the file server behind the mount",
        )


def _look(readable: Readable, findings: Findings) -> None:
    root = readable.settings.volume
    try:
        status = os.stat(root)
    except (OSError, ValueError) as error:
        findings.failed(
            "volume", f"{root}: {_reason(error)}", "mount it there, or mend DATA_VOLUME_PATH"
        )
        return
    if not stat.S_ISDIR(status.st_mode):
        findings.failed(
            "volume", f"{root} is no directory", "mend DATA_VOLUME_PATH: it names a directory"
        )
        return
    findings.ok(
        "volume",
        f"{root} is of {status.st_uid}:{status.st_gid}, mode {stat.S_IMODE(status.st_mode):o};"
        f" this is run as {os.geteuid()}:{os.getegid()}",
    )
    is_at_work = _look_at_sockets(readable, findings)
    _look_at_writing(root, findings)
    _look_at_space(root, findings)
    _look_at_parts(readable, status.st_dev, findings)
    if not is_at_work and not os.path.islink(os.path.join(root, OWN_DIRECTORY)):
        _look_at_left_overs(root, findings)


def _look_at_writing(root: str, findings: Findings) -> None:
    path = os.path.join(root, f".iterum-sidecar-check-{secrets.token_hex(8)}")
    try:
        file = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(file, b"probe")
        finally:
            os.close(file)
            os.unlink(path)
    except OSError as error:
        findings.failed(
            "writing", f"{root} takes no file: {_reason(error)}", _writing_remedy(error, root)
        )
    else:
        findings.ok("writing", "a file was made, written and removed")


def _writing_remedy(error: OSError, root: str) -> str:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"let user {os.geteuid()} write to {root}: its owner and mode, or securityContext.fsGroup of the pod"
    if error.errno == errno.EROFS:
        return "mount it without readOnly"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "make room in it, or make it larger"
    return "see to the mount"


def _look_at_space(root: str, findings: Findings) -> None:
    found = os.statvfs(root)
    free, whole = (blocks * found.f_frsize for blocks in (found.f_bavail, found.f_blocks))
    detail = f"{_size(free)} of {_size(whole)} are free"
    if found.f_files and not found.f_favail:
        findings.failed("space", f"{detail}, and no inode is", "remove files from it")
    elif free < LITTLE_SPACE:
        findings.warning(
            "space",
            detail,
            "the files of all fragments in flight need room: make it larger, or lower MQ_PREFETCH_COUNT",
        )
    else:
        findings.ok("space", detail)


def _look_at_sockets(readable: Readable, findings: Findings) -> bool:
    """Tell whether somebody is at work on either socket."""
    settings = readable.settings
    if reason := readable.lacks("TRANSFORMATION_STEP_INPUT", "TRANSFORMATION_STEP_OUTPUT"):
        findings.unknown("sockets", reason)
        return False
    used = False
    for subject, name in (
        ("input socket", settings.input_socket),
        ("output socket", settings.output_socket),
    ):
        path = os.path.join(settings.volume, name)
        bound = f"{path}, {len(os.fsencode(path))} bytes of {MAX_SOCKET_PATH_BYTES}"
        try:
            state = state_of_socket(path)
        except OSError as error:
            findings.failed(subject, f"{path}: {_reason(error)}", "see to what is in its place")
        else:
            if state == "foreign":
                findings.failed(
                    subject, f"{path} is no socket", "remove it: the sidecar's socket belongs there"
                )
            elif state == "used":
                used = True
                findings.failed(
                    subject,
                    f"{path}: another process has it",
                    "end the other sidecar, or give each a volume of its own",
                )
            elif state == "left":
                findings.ok(subject, f"{bound}; left by an earlier life, `run` replaces it")
            else:
                findings.ok(subject, bound)
    return used


def _look_at_parts(readable: Readable, device: int, findings: Findings) -> None:
    """Look whether what `run` makes in the volume lies on its file system, as far as it is there already."""
    settings = readable.settings
    directories = {OWN_DIRECTORY}
    if not readable.lacks("ITERUM_CONFIG_PATH"):
        directories.add(settings.config_directory)
    if not readable.lacks("TRANSFORMATION_STEP_INPUT", "TRANSFORMATION_STEP_OUTPUT"):
        directories |= {
            os.path.dirname(name) for name in (settings.input_socket, settings.output_socket)
        } - {""}
    fine = True
    for directory in sorted(directories):
        try:
            status = os.lstat(os.path.join(settings.volume, directory))
        except FileNotFoundError:
            continue
        except OSError as error:
            findings.failed(
                "parts", f"{directory}: {_reason(error)}", "remove it, or mend its permissions"
            )
        else:
            if not stat.S_ISDIR(status.st_mode):
                findings.failed(
                    "parts",
                    f"{directory} is no directory",
                    "remove it: `run` makes a directory there",
                )
            elif status.st_dev != device:
                findings.warning(
                    "parts",
                    f"{directory} is on another file system than the volume",
                    "mount the volume alone: no file can be linked from one to the other",
                )
            else:
                continue
        fine = False
    if fine:
        findings.ok(
            "parts", f"{', '.join(sorted(directories))}: all on one file system, or not there yet"
        )


def _look_at_left_overs(root: str, findings: Findings) -> None:
    """Look at what an earlier life has left in the sidecar's own directory, and whether `run` may remove it."""
    own = os.path.join(root, OWN_DIRECTORY)
    count = size = 0
    for path, status in _all_below(own):
        if stat.S_ISDIR(status.st_mode):
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                findings.failed(
                    "left-overs",
                    f"{path} is of an earlier life, and user {os.geteuid()} may not clear it",
                    f"remove {own} as user {status.st_uid}",
                )
                return
            continue
        count += 1
        size += status.st_size
        if count == MOST_COUNTED:
            break
    if count:
        more = "or more " if count == MOST_COUNTED else ""
        findings.ok(
            "left-overs",
            f"{count} {more}files of an earlier life, {_size(size)}; `run` removes them",
        )
    else:
        findings.ok("left-overs", "none of an earlier life")


def _all_below(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what is at `root` and below it, each directory before what is in it; no link is followed."""
    pending = [root]
    while pending:
        path = pending.pop()
        try:
            status = os.lstat(path)
            yield path, status
            names = os.listdir(path) if stat.S_ISDIR(status.st_mode) else []
        except OSError:
            # Gone meanwhile, or not ours to read, which whoever was told of the directory has seen.
            continue
        pending += [os.path.join(path, name) for name in names]


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _size(number: int) -> str:
    size, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
