"""A manager of one's own: it answers the one question that a sidecar asks."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
from typing import TYPE_CHECKING

from testbed.ports import LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.tls import Tls

__all__ = ["Manager", "running_manager"]


class Manager:
    """What the manager will say, to be changed at any time, and what it has been asked.

    `status` is the HTTP status of the answer. The paths that it was asked for are in `asked`.
    """

    def __init__(self, *, finished: bool) -> None:
        self.finished = finished
        self.status = 200
        self.asked: list[str] = []
        self.url = ""


@contextlib.contextmanager
def running_manager(*, finished: bool = False, tls: Tls | None = None) -> Iterator[Manager]:
    """Run a manager in a thread, over TLS if that is given; its `url` is what MANAGER_URL is set to."""
    manager = Manager(finished=finished)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            manager.asked.append(self.path)
            body = json.dumps({"finished": manager.finished}).encode()
            self.send_response(manager.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            """Keep quiet."""

    with http.server.ThreadingHTTPServer((LOCAL, 0), Handler) as server:
        manager.url = f"{'http' if tls is None else 'https'}://{LOCAL}:{server.server_port}"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        thread.start()
        try:
            yield manager
        finally:
            server.shutdown()
            thread.join()
