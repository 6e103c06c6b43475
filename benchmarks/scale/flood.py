"""Fill a queue as fast as the broker reads: frames made once, written a thousand messages at a time."""

from __future__ import annotations

import itertools
import socket
import urllib.parse
from typing import TYPE_CHECKING

import pamqp.base
import pamqp.frame
import pamqp.header
from pamqp import commands

if TYPE_CHECKING:
    from collections.abc import Iterable

BATCH = 1000
CHANNEL = 1
FRAME_END = b"\xce"
FRAME_HEAD = 7
BODY_FRAME = b"\x03" + CHANNEL.to_bytes(2, "big")
FRAME_SIZE = 131072
#: As many as RabbitMQ lets a connection have.
CHANNELS = 2047
PIECE = FRAME_SIZE - FRAME_HEAD - len(FRAME_END)
SECONDS = 120


def read_frame(sock: socket.socket) -> bytes:
    """Return the next frame whole; ConnectionError says that the broker has closed."""
    data = b""
    missing = FRAME_HEAD
    while missing > 0:
        piece = sock.recv(missing)
        if not piece:
            raise ConnectionError("the broker has closed the connection")
        data += piece
        missing -= len(piece)
        if len(data) == FRAME_HEAD:
            missing = int.from_bytes(data[3:FRAME_HEAD], "big") + len(FRAME_END)
    return data


def call(sock: socket.socket, method: pamqp.base.Frame, channel: int = CHANNEL) -> None:
    """Send a method and wait for the broker's answer."""
    sock.sendall(pamqp.frame.marshal(method, channel))
    read_frame(sock)


def flood(url: str, queue: str, bodies: Iterable[bytes]) -> None:
    """Put messages on a queue, in order; the broker has them all when this returns.

    The URL is a plain one with the vhost `/`.
    """
    parts = urllib.parse.urlsplit(url)
    properties = commands.Basic.Properties(content_type="application/json", delivery_mode=2)
    publish = pamqp.frame.marshal(commands.Basic.Publish(0, "", queue), CHANNEL)
    with socket.create_connection((parts.hostname, parts.port), timeout=SECONDS) as sock:
        sock.sendall(b"AMQP\0\0\x09\x01")
        read_frame(sock)
        response = f"\0{parts.username}\0{parts.password}"
        call(sock, commands.Connection.StartOk({}, "PLAIN", response, "en_US"), 0)
        sock.sendall(pamqp.frame.marshal(commands.Connection.TuneOk(CHANNELS, FRAME_SIZE, 0), 0))
        call(sock, commands.Connection.Open("/"), 0)
        call(sock, commands.Channel.Open())
        heads: dict[int, bytes] = {}
        messages = iter(bodies)
        while batch := list(itertools.islice(messages, BATCH)):
            data = bytearray()
            for body in batch:
                size = len(body)
                if size not in heads:
                    header = pamqp.header.ContentHeader(0, size, properties)
                    heads[size] = publish + pamqp.frame.marshal(header, CHANNEL)
                data += heads[size]
                for start in range(0, size, PIECE):
                    piece = body[start : start + PIECE]
                    data += BODY_FRAME + len(piece).to_bytes(4, "big") + piece + FRAME_END
            sock.sendall(data)
        # The broker answers in order: the answer to this says that it has read everything before.
        call(sock, commands.Connection.Close(200, "", 0, 0), 0)
