"""The cheapest Trio program that does a sidecar's requests and frames: what a real one is compared with.

It has no stages, no ledger and no safety, and trusts every peer and every answer. Sixteen workers each walk
one fragment down a straight line; the transformation gets one fragment at a time. Every socket is a
non-blocking one, and Trio is asked to wait only when a call would block. Do not run it for anything else.
With SIDECAR_CA_FILE set, it speaks TLS with broker and store.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import os
import socket
import ssl
import struct
import urllib.parse
import urllib.request
from typing import Any

import httptools
import pamqp.base
import pamqp.commands
import pamqp.frame
import pamqp.header
import trio
from pamqp.body import ContentBody

WORKERS = 16
READ_SIZE = 1 << 18
LENGTH = struct.Struct("<I")
JSON = "application/json"
AUTHORITY = os.environ.get("SIDECAR_CA_FILE")
TLS = ssl.create_default_context(cafile=AUTHORITY) if AUTHORITY else None


async def receive(sock: socket.socket, size: int = READ_SIZE) -> bytes:
    while True:
        try:
            data = sock.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError):
            await trio.lowlevel.wait_readable(sock)
        else:
            if not data:
                raise EOFError(f"{sock} was closed by the other side")
            return data


async def send(sock: socket.socket, data: bytes | memoryview) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            await trio.lowlevel.wait_writable(sock)


async def connect(host: str, port: int) -> socket.socket:
    sock = socket.create_connection((host, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = TLS.wrap_socket(sock, server_hostname=host) if TLS else sock
    sock.setblocking(False)
    return sock


class Response:
    """An HTTP response, its body written to a file descriptor as it comes."""

    def __init__(self, file: int | None) -> None:
        self.file = file
        self.complete = False

    def on_body(self, body: bytes) -> None:
        if self.file is not None:
            os.write(self.file, body)

    def on_message_complete(self) -> None:
        self.complete = True


class Store:
    """GET and PUT, signed by hand (AWS Signature Version 4)."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str) -> None:
        self.endpoint = endpoint
        self.access_key = access_key
        self.idle: list[socket.socket] = []
        self.day = f"{dt.datetime.now(dt.UTC):%Y%m%d}"
        key = f"AWS4{secret_key}".encode()
        for part in (self.day, "us-east-1", "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        self.key = key

    def head(self, method: str, bucket: str, key: str, length: int) -> bytes:
        now = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
        path = f"/{bucket}/{urllib.parse.quote(key, safe='/-_.~')}" if key else f"/{bucket}"
        names = "host;x-amz-content-sha256;x-amz-date"
        canonical = (
            f"{method}\n{path}\n\nhost:{self.endpoint}\nx-amz-content-sha256:UNSIGNED-PAYLOAD\n"
            f"x-amz-date:{now}\n\n{names}\nUNSIGNED-PAYLOAD"
        )
        scope = f"{self.day}/us-east-1/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"
        signature = hmac.digest(self.key, to_sign.encode(), "sha256").hex()
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.endpoint}\r\nx-amz-date: {now}\r\n"
            "x-amz-content-sha256: UNSIGNED-PAYLOAD\r\n"
            f"Authorization: AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    async def request(
        self,
        method: str,
        bucket: str,
        key: str = "",
        *,
        source: int | None = None,
        target: int | None = None,
    ) -> None:
        size = 0 if source is None else os.fstat(source).st_size
        head = self.head(method, bucket, key, size)
        if self.idle:
            sock = self.idle.pop()
        else:
            host, _, port = self.endpoint.partition(":")
            sock = await connect(host, int(port))
        if source is None:
            await send(sock, head)
        else:
            await send(sock, head + os.read(source, READ_SIZE))
            while block := size > READ_SIZE and os.read(source, READ_SIZE):
                await send(sock, memoryview(block))
        response = Response(target)
        parser = httptools.HttpResponseParser(response)
        while not response.complete:
            parser.feed_data(await receive(sock))
        status = parser.get_status_code()
        if status >= 300 and not (status == 409 and not key):
            raise SystemExit(f"{method} {bucket}/{key}: {status}")
        self.idle.append(sock)


class Broker:
    """One AMQP channel that consumes and publishes with confirms."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.sending = trio.Lock()
        self.published = 0
        self.waiting: dict[int, trio.Event] = {}

    async def frame(self) -> object:
        while True:
            if len(self.buffer) >= 7:
                end = 8 + int.from_bytes(self.buffer[3:7], "big")
                if len(self.buffer) >= end:
                    _, _, frame = pamqp.frame.unmarshal(bytes(self.buffer[:end]))
                    del self.buffer[:end]
                    return frame
            self.buffer += await receive(self.sock)

    async def call(self, method: pamqp.base.Frame, channel: int = 1) -> object:
        await self.write(pamqp.frame.marshal(method, channel))
        return await self.frame()

    async def write(self, data: bytes) -> None:
        async with self.sending:
            await send(self.sock, data)

    async def open(self, url: str, prefetch: int) -> None:
        parts = urllib.parse.urlsplit(url)
        await send(self.sock, b"AMQP\0\0\x09\x01")
        await self.frame()
        response = f"\0{parts.username}\0{parts.password}"
        commands = pamqp.commands
        await self.call(commands.Connection.StartOk({}, "PLAIN", response, "en_US"), 0)
        await self.write(pamqp.frame.marshal(commands.Connection.TuneOk(2047, 131072, 0), 0))
        vhost = urllib.parse.unquote(parts.path[1:]) or "/"
        await self.call(commands.Connection.Open(vhost), 0)
        await self.call(commands.Channel.Open())
        await self.call(commands.Confirm.Select())
        await self.call(commands.Basic.Qos(0, prefetch, False))

    async def declare(self, queue: str) -> int:
        declared = await self.call(pamqp.commands.Queue.Declare(0, queue))
        assert isinstance(declared, pamqp.commands.Queue.DeclareOk)
        return declared.message_count or 0

    async def consume(
        self, queue: str, deliveries: trio.MemorySendChannel[tuple[int, bytes]]
    ) -> None:
        await self.write(pamqp.frame.marshal(pamqp.commands.Basic.Consume(0, queue), 1))
        tag, size, body = 0, 0, b""
        while True:
            frame = await self.frame()
            if isinstance(frame, pamqp.commands.Basic.Deliver):
                assert frame.delivery_tag is not None
                tag, body = frame.delivery_tag, b""
            elif isinstance(frame, pamqp.header.ContentHeader):
                size = frame.body_size
            elif isinstance(frame, ContentBody):
                assert frame.value is not None
                body += frame.value
                if len(body) == size:
                    deliveries.send_nowait((tag, body))
            elif isinstance(frame, pamqp.commands.Basic.Ack):
                assert frame.delivery_tag is not None
                confirmed = (
                    [each for each in self.waiting if each <= frame.delivery_tag]
                    if frame.multiple
                    else [frame.delivery_tag]
                )
                for each in confirmed:
                    self.waiting.pop(each).set()

    async def publish(self, *messages: tuple[str, bytes]) -> None:
        properties = pamqp.commands.Basic.Properties(content_type=JSON, delivery_mode=2)
        data = b""
        events = []
        for queue, body in messages:
            self.published += 1
            events.append(trio.Event())
            self.waiting[self.published] = events[-1]
            data += pamqp.frame.marshal(pamqp.commands.Basic.Publish(0, "", queue), 1)
            data += pamqp.frame.marshal(pamqp.header.ContentHeader(0, len(body), properties), 1)
            data += pamqp.frame.marshal(ContentBody(body), 1)
        await self.write(data)
        for event in events:
            await event.wait()

    async def acknowledge(self, tag: int) -> None:
        await self.write(pamqp.frame.marshal(pamqp.commands.Basic.Ack(tag), 1))


def frame(message: object) -> bytes:
    body = json.dumps(message).encode()
    return LENGTH.pack(len(body)) + body


class Transformation:
    """One connection to each socket, one fragment at a time."""

    def __init__(self, receiver: socket.socket, sender: socket.socket) -> None:
        self.receiver = receiver
        self.sender = sender
        self.buffer = bytearray()
        self.turn = trio.Lock()

    async def frame(self) -> dict[str, Any]:
        while True:
            if len(self.buffer) >= 4:
                end = 4 + LENGTH.unpack_from(self.buffer)[0]
                if len(self.buffer) >= end:
                    message: dict[str, Any] = json.loads(self.buffer[4:end])
                    del self.buffer[:end]
                    return message
            self.buffer += await receive(self.sender)

    async def work(self, fragment: dict[str, Any]) -> list[tuple[dict[str, Any], list[int]]]:
        """Hand a fragment out and return its results, their files open and their paths removed."""
        results = []
        async with self.turn:
            await send(self.receiver, frame(fragment))
            while "files" in (message := await self.frame()):
                files = [os.open(file["path"], os.O_RDONLY) for file in message["files"]]
                for file in message["files"]:
                    os.unlink(file["path"])
                results.append((message, files))
        return results


class Floor:
    """The whole program."""

    def __init__(self) -> None:
        environ = os.environ
        self.volume = environ["DATA_VOLUME_PATH"]
        self.bucket = environ["MINIO_OUTPUT_BUCKET"]
        self.output = environ["MQ_OUTPUT_QUEUE"]
        self.lineage = f"{environ['PIPELINE_HASH']}-lineage"
        self.name = environ["ITERUM_NAME"]
        self.store = Store(
            environ["MINIO_URL"], environ["MINIO_ACCESS_KEY"], environ["MINIO_SECRET_KEY"]
        )

    def listen(self, variable: str) -> socket.socket:
        path = os.path.join(self.volume, os.environ[variable])
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        return listener

    async def accept(self, listener: socket.socket) -> socket.socket:
        await trio.lowlevel.wait_readable(listener)
        connection, _ = listener.accept()
        connection.setblocking(False)
        return connection

    async def process(self, body: bytes, transformation: Transformation, broker: Broker) -> None:
        remote = json.loads(body)
        fragment_id = remote["metadata"]["fragment_id"]
        directory = f"{self.volume}/{fragment_id}"
        os.mkdir(directory)
        local = []
        for file in remote["files"]:
            path = f"{directory}/{file['name']}"
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            await self.store.request("GET", file["bucket"], file["path"], target=target)
            os.close(target)
            local.append({"name": file["name"], "path": path})
        metadata = {"fragment_id": fragment_id, "predecessors": remote["metadata"]["predecessors"]}
        results = await transformation.work({"files": local, "metadata": metadata})
        for number, (result, opened) in enumerate(results):
            output_id = hashlib.sha256(f"{fragment_id}{number}".encode()).hexdigest()
            files = []
            for file, source in zip(result["files"], opened, strict=True):
                key = f"iterum_data/{output_id}/{file['name']}"
                await self.store.request("PUT", self.bucket, key, source=source)
                os.close(source)
                files.append({"name": file["name"], "path": key, "bucket": self.bucket})
            metadata = {
                "fragment_id": output_id,
                "predecessors": result["metadata"]["predecessors"],
            }
            description = {"files": files, "metadata": metadata}
            lineage = {"transformation_step": self.name, "description": description}
            await broker.publish(
                (self.output, json.dumps(description).encode()),
                (self.lineage, json.dumps(lineage).encode()),
            )
        for file in local:
            os.unlink(file["path"])
        os.rmdir(directory)

    async def run(self) -> None:
        listeners = [
            self.listen(variable)
            for variable in ("TRANSFORMATION_STEP_INPUT", "TRANSFORMATION_STEP_OUTPUT")
        ]
        url = os.environ["MQ_BROKER_URL"]
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        broker = Broker(await connect(parts.hostname, parts.port or 5672))
        await broker.open(url, int(os.environ.get("MQ_PREFETCH_COUNT") or 0))
        queue = os.environ["MQ_INPUT_QUEUE"]
        remaining = await broker.declare(queue)
        await broker.declare(self.output)
        await broker.declare(self.lineage)
        await self.store.request("PUT", self.bucket)
        transformation = Transformation(*[await self.accept(each) for each in listeners])
        sender, receiver = trio.open_memory_channel[tuple[int, bytes]](100_000)

        async def worker() -> None:
            nonlocal remaining
            async for tag, body in receiver:
                await self.process(body, transformation, broker)
                await broker.acknowledge(tag)
                remaining -= 1
                if not remaining:
                    await transformation_ends()

        async def transformation_ends() -> None:
            await send(transformation.receiver, frame({"status": "complete"}))
            await transformation.frame()
            # The answer to this says that the broker has read the last acknowledgement.
            await broker.write(
                pamqp.frame.marshal(pamqp.commands.Connection.Close(200, "", 0, 0), 0)
            )
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.consume, queue, sender)
            for _ in range(WORKERS):
                nursery.start_soon(worker)
        while not isinstance(await broker.frame(), pamqp.commands.Connection.CloseOk):
            pass
        for listener in listeners:
            os.unlink(listener.getsockname())


def upstream_finished() -> bool:
    environ = os.environ
    path = f"pipeline/{environ['PIPELINE_HASH']}/{environ['ITERUM_NAME']}/upstream_finished"
    with urllib.request.urlopen(f"{environ['MANAGER_URL']}/{path}") as answer:
        return bool(json.load(answer)["finished"])


def main() -> None:
    if not upstream_finished():
        raise SystemExit("the floor is for inputs that are all there already")
    trio.run(Floor().run)


if __name__ == "__main__":
    main()
