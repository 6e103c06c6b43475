"""Secrets that lie in files, as Kubernetes mounts them: how one is read."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["SecretUnreadable", "read_secret"]

#: Bytes; many times the longest session token, and no device or log file is taken for a secret.
LONGEST_SECRET: Final = 65_536


class SecretUnreadable(ValueError):
    """A file holds no secret that can be used; the message says why, and never what is in it."""


def read_secret(path: str) -> str:
    """Return what a file holds, less one newline at its end.

    Raises:
        SecretUnreadable: it cannot be opened, is empty, longer than 64 KiB, or no UTF-8.
    """
    try:
        # Without O_NONBLOCK a named pipe would hold everything up.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            content = os.read(file, LONGEST_SECRET + 1)
        finally:
            os.close(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise SecretUnreadable(f"cannot be read ({reason})") from None
    if len(content) > LONGEST_SECRET:
        raise SecretUnreadable(f"is longer than {LONGEST_SECRET} bytes")
    try:
        secret = content.decode()
    except UnicodeDecodeError:
        raise SecretUnreadable("holds bytes that are no UTF-8") from None
    secret = secret.removesuffix("\r\n" if secret.endswith("\r\n") else "\n")
    if not secret:
        raise SecretUnreadable("is empty")
    return secret
