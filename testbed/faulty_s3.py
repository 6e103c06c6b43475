"""A front of an S3 server that answers some requests wrongly, late or not at all, by a plan that a seed decides."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import http.client
import http.server
import random
import threading
from typing import TYPE_CHECKING, ClassVar

from testbed.ports import LOCAL

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

    from testbed.object_stores import ObjectStore

__all__ = ["Fault", "FaultPlan", "FaultyS3", "running_faulty_s3"]


class Fault(enum.Enum):
    """What may be the matter with one request."""

    SLOW_DOWN = "503 SlowDown"
    TOO_MANY_REQUESTS = "429 with Retry-After: 1"
    INTERNAL_ERROR = "500 InternalError"
    REQUEST_TIMEOUT = "400 RequestTimeout"
    ACCESS_DENIED = "403 AccessDenied"
    NOT_FOUND = "404 that is no S3 server's, as of a proxy whose server is away"
    MAINTENANCE = "200 that is no S3 server's, with a page about maintenance"
    CLOSED_BEFORE = "the connection is closed instead of an answer, and nothing was done"
    CLOSED_AFTER = "the connection is closed after the answer, which did not say so"
    ANSWER_LOST = "the connection is closed instead of an answer, and all was done"
    SHORT_BODY = "half of the body, then the connection is closed"
    SHORT_LENGTH = "a Content-Length that is less than the body"
    FLIPPED_BYTE = "a body with another byte in its middle"
    STALLED = "half of the body, then silence"
    SILENCE = "no answer"


#: Those that an answer without a body cannot have.
OF_BODIES = {Fault.SHORT_BODY, Fault.SHORT_LENGTH, Fault.FLIPPED_BYTE, Fault.STALLED}

ERRORS = {
    Fault.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate.", ""),
    Fault.TOO_MANY_REQUESTS: (429, "TooManyRequests", "Too many.", "Retry-After: 1\r\n"),
    Fault.INTERNAL_ERROR: (500, "InternalError", "We encountered an internal error.", ""),
    Fault.REQUEST_TIMEOUT: (400, "RequestTimeout", "Your socket was not read from.", ""),
    Fault.ACCESS_DENIED: (403, "AccessDenied", "Access Denied.", ""),
}
PAGE = b"<html><body>We will be back soon.</body></html>"


@dataclasses.dataclass(frozen=True)
class FaultPlan:
    """Which requests go wrong: of each kind of fault one in so many.

    What becomes of a request depends on the seed, the request and how often it has come, and not on what comes beside it. `most`
    bounds how often a kind happens at all, for those that take long; `paths` says of which requests the path must contain it.
    """

    seed: int
    one_in: Mapping[Fault, int]
    most: Mapping[Fault, int] = dataclasses.field(default_factory=dict)
    paths: str = ""

    def fault_of(self, method: str, path: str, time: int) -> Fault | None:
        """Return what is to happen to a request that comes for the `time`-th time."""
        if self.paths not in path:
            return None
        draw = random.Random(f"{self.seed} {method} {path} {time}").random()
        for fault, count in self.one_in.items():
            draw -= 1 / count
            if draw < 0:
                return fault
        return None


class FaultyS3:
    """The front, to be told otherwise at any time. Use `running_faulty_s3`.

    `plan` may be replaced; without one all is passed on. `happened` counts the faults, and `requests` has method and path of all.
    """

    def __init__(self) -> None:
        self.plan: FaultPlan | None = None
        self.happened: collections.Counter[Fault] = collections.Counter()
        self.requests: list[tuple[str, str]] = []
        self.endpoint = ""
        self.over = threading.Event()
        self._times: collections.Counter[tuple[str, str]] = collections.Counter()
        self._lock = threading.Lock()

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Note a request, and return what is to happen to it."""
        with self._lock:
            self.requests.append((method, path))
            self._times[method, path] += 1
            plan = self.plan
            if plan is None:
                return None
            fault = plan.fault_of(method, path, self._times[method, path])
            if fault is None or self.happened[fault] >= plan.most.get(
                fault, self.happened[fault] + 1
            ):
                return None
            return fault

    def note(self, fault: Fault) -> None:
        """Count a fault that happens."""
        with self._lock:
            self.happened[fault] += 1


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection of a client, and one to the server behind it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    front: ClassVar[FaultyS3]
    target: ClassVar[str]
    connection: socket.socket

    def setup(self) -> None:
        super().setup()
        self.behind = http.client.HTTPConnection(self.target, timeout=60)

    def finish(self) -> None:
        self.behind.close()
        super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Keep quiet."""

    def _serve(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._answer()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.front.next_fault(self.command, self.path)
        if fault in OF_BODIES:
            self._answer_with_a_wrong_body(body, fault)
        elif fault is None:
            self._send(*self._forward(body))
        else:
            self.front.note(fault)
            self._fail(body, fault)

    def _answer_with_a_wrong_body(self, body: bytes, fault: Fault | None) -> None:
        status, head, answer = self._forward(body)
        if fault is None or self.command == "HEAD" or status != 200 or len(answer) < 2:
            self._send(status, head, answer)
            return
        self.front.note(fault)
        half = len(answer) // 2
        if fault is Fault.FLIPPED_BYTE:
            answer = answer[:half] + bytes([answer[half] ^ 1]) + answer[half + 1 :]
            self._send(status, head, answer)
        elif fault is Fault.SHORT_LENGTH:
            self._send(status, head, answer, length=half)
        else:
            self._send(status, head, answer[:half], length=len(answer))
            if fault is Fault.STALLED:
                self.front.over.wait()
            self.close_connection = True

    def _fail(self, body: bytes, fault: Fault) -> None:
        if fault in ERRORS:
            status, code, message, further = ERRORS[fault]
            xml = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
            self._send(status, f"Content-Type: application/xml\r\n{further}", xml.encode())
        elif fault in {Fault.NOT_FOUND, Fault.MAINTENANCE}:
            status = 404 if fault is Fault.NOT_FOUND else 200
            self._send(status, "Content-Type: text/html\r\n", PAGE)
        elif fault is Fault.CLOSED_AFTER:
            self._send(*self._forward(body))
            self.close_connection = True
        else:
            if fault is Fault.ANSWER_LOST:
                self._forward(body)
            if fault is Fault.SILENCE:
                self.front.over.wait()
            self.close_connection = True

    def _forward(self, body: bytes) -> tuple[int, str, bytes]:
        """Ask the server behind, with the head as it came: it is signed. Returns status, head and body."""
        self.behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            self.behind.putheader(name, value)
        self.behind.endheaders(body)
        answer = self.behind.getresponse()
        content = answer.read()
        passed = [
            f"{name}: {value}\r\n"
            for name, value in answer.headers.items()
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}
        ]
        if self.command == "HEAD" and (length := answer.headers.get("Content-Length")):
            passed.append(f"Content-Length: {length}\r\n")
        return answer.status, "".join(passed), content

    def _send(self, status: int, head: str, body: bytes, *, length: int | None = None) -> None:
        if self.command != "HEAD":
            head += f"Content-Length: {len(body) if length is None else length}\r\n"
        elif "content-length" not in head.lower():
            head += "Content-Length: 0\r\n"
        content = b"" if self.command == "HEAD" else body
        self.wfile.write(f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode("latin-1") + content)


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: clients leave, and the server behind may be away; its clients see a connection that was closed."""


@contextlib.contextmanager
def running_faulty_s3(store: ObjectStore) -> Iterator[FaultyS3]:
    """Run a front of a store that speaks no TLS, on a port of its own."""
    front = FaultyS3()
    attributes = {"front": front, "target": store.endpoint}
    with _Server((LOCAL, 0), type("Handler", (_Handler,), attributes)) as server:
        front.endpoint = f"{LOCAL}:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield front
        finally:
            front.over.set()
            server.shutdown()
            thread.join()
