"""The manager's one answer (docs/protocol.md, section 5), found out without looking at containers.

Iterum's manager counts the pods that have ended. Here a step is finished when the one before it is, its sidecar has gone,
and its queue is empty: what a sidecar held unacknowledged comes back to the queue when it goes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING

import trio
from peers import COMBINER, PIPELINE, Step, look_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iterum_sidecar.brokers.amqp import AmqpBroker

__all__ = ["serve_answers", "watch"]

PORT = 8000
#: Where a sidecar tells of itself (SIDECAR_HTTP_ADDRESS), for as long as it lives.
SIDECAR_PORT = 8080
#: Seconds between two attempts to connect, and for one.
CONNECT_EVERY = 0.5
CONNECT_SECONDS = 5.0
#: Seconds between two questions; the sidecar closes a connection over which nothing is asked.
ASK_EVERY = 5.0
#: Seconds in which the broker puts back what a sidecar held that has ended.
PUT_BACK_SECONDS = 1.0


async def watch(broker: AmqpBroker, steps: Sequence[Step], finished: set[str]) -> None:
    """Put into `finished` whose upstream is, one name after the other: each step's, and at last the combiner's.

    Begun when everything is on the first step's queue.
    """
    for step in steps:
        name = f"{PIPELINE}-{step.name}"
        while True:
            stream = await _connect(step.sidecar)
            # Not before: a sidecar that nobody has seen could end unseen.
            finished.add(name)
            await _wait_until_gone(stream)
            await trio.sleep(PUT_BACK_SECONDS)
            left = (await look_at(broker, step.input_queue)).messages
            if left == 0:
                break
            finished.discard(name)
            print(
                f"{step.sidecar} has ended with {left} messages in its queue; start it again",
                flush=True,
            )
        print(f"{step.name} is finished", flush=True)
    finished.add(COMBINER)


async def serve_answers(finished: set[str]) -> None:
    """Answer whether the upstream of a step is in `finished`, until cancelled."""

    class Handler(BaseHTTPRequestHandler):
        # Keeps connections, so that nobody has to look our name up for each question.
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            match self.path.split("/"):
                case ["", "pipeline", pipeline, name, "upstream_finished"] if pipeline == PIPELINE:
                    body = json.dumps({"finished": name in finished}).encode()
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                case _:
                    self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            """Keep quiet: every sidecar asks once a second."""

    # No HTTPServer: that asks for its own name, which takes a minute where no name server answers.
    with ThreadingTCPServer(("", PORT), Handler) as server:
        server.daemon_threads = True
        await trio.to_thread.run_sync(server.serve_forever, abandon_on_cancel=True)


async def _connect(host: str) -> trio.SocketStream:
    while True:
        with suppress(OSError, trio.TooSlowError), trio.fail_after(CONNECT_SECONDS):
            return await trio.open_tcp_stream(host, SIDECAR_PORT)
        await trio.sleep(CONNECT_EVERY)


async def _wait_until_gone(stream: trio.SocketStream) -> None:
    async def ask() -> None:
        while True:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"HEAD / HTTP/1.1\r\nHost: sidecar\r\n\r\n")
            await trio.sleep(ASK_EVERY)

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        with suppress(trio.BrokenResourceError):
            async for _ in stream:
                pass
        nursery.cancel_scope.cancel("it has gone")
