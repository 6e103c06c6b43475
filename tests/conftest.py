from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Take Ctrl-C as it is taken in a terminal: a shell lets what it runs in the background ignore it, and so would every child."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
