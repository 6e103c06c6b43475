from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pamqp import commands

from iterum_sidecar.amqp import (
    AccessRefused,
    AmqpError,
    ConnectError,
    ConnectionClosedByBroker,
    ConnectionParameters,
    EndedAfterTls,
    HandshakeTimeout,
    ProtocolViolation,
    codec,
    open_connection,
)
from iterum_sidecar.amqp.handshake import STEP_SECONDS, agree
from tests.unit.amqp.false_broker import PARAMETERS, BrokenPipe, FalseBroker, silence

if TYPE_CHECKING:
    from trio.testing import MockClock


async def connect(broker: FalseBroker, heartbeat: int = 60) -> None:
    async with open_connection(
        PARAMETERS,
        stream_factory=broker.stream_factory,
        heartbeat=heartbeat,
        connection_name="test",
    ):
        pass


async def test_what_is_said_in_a_handshake(broker: FalseBroker) -> None:
    await connect(broker)
    start_ok, tune_ok, opening, close = (item for _, item in broker.received)
    assert isinstance(start_ok, commands.Connection.StartOk)
    assert start_ok.mechanism == "PLAIN"
    assert start_ok.response == "\0user\0secret"
    assert start_ok.client_properties["connection_name"] == "test"
    assert start_ok.client_properties["capabilities"] == {
        "authentication_failure_close": True,
        "basic.nack": True,
        "connection.blocked": True,
        "consumer_cancel_notify": True,
        "publisher_confirms": True,
    }
    assert isinstance(tune_ok, commands.Connection.TuneOk)
    assert dict(tune_ok) == {"channel_max": 2047, "frame_max": 131072, "heartbeat": 60}
    assert isinstance(opening, commands.Connection.Open)
    assert opening.virtual_host == "pipelines"
    assert isinstance(close, commands.Connection.Close)


@pytest.mark.parametrize(
    ("silent_after", "step"),
    [
        (commands.Connection.Start, "connection.start"),
        (commands.Connection.StartOk, "connection.tune"),
        (commands.Connection.Open, "connection.open-ok"),
    ],
)
async def test_silence_in_a_step_ends_at_its_deadline(
    broker: FalseBroker, silent_after: type, step: str
) -> None:
    broker.answers[silent_after] = silence
    begin = trio.current_time()
    with pytest.raises(HandshakeTimeout, match=f"no {step} from the broker within 10 s"):
        await connect(broker)
    assert trio.current_time() - begin == pytest.approx(STEP_SECONDS)


async def test_a_stream_that_never_comes_ends_at_its_deadline(autojump_clock: MockClock) -> None:
    async def never(*_: object) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(HandshakeTimeout, match="no connection from the broker within 3 s"):
        async with open_connection(PARAMETERS, stream_factory=never, connect_timeout=3):
            pytest.fail("it is not open")
    assert autojump_clock.current_time() > 0


async def test_a_stream_that_cannot_be_made_is_a_connect_error() -> None:
    async def refused(*_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError("refused")

    with pytest.raises(ConnectError, match="localhost:5672: refused"):
        async with open_connection(PARAMETERS, stream_factory=refused):
            pytest.fail("it is not open")


@pytest.mark.parametrize("code", [403, 530])
async def test_a_refusal_names_user_and_vhost_and_never_the_password(
    broker: FalseBroker, code: int
) -> None:
    refusal = commands.Connection.Close(code, "REFUSED", 0, 0)
    broker.answers[commands.Connection.StartOk] = lambda _: refusal
    with pytest.raises(AccessRefused, match="user 'user', virtual host 'pipelines'") as caught:
        await connect(broker)
    assert not caught.value.retryable
    assert "secret" not in repr(caught.value)
    await broker.wait_for(commands.Connection.CloseOk)


async def test_another_close_in_a_handshake_gives_the_brokers_reason(broker: FalseBroker) -> None:
    closing = commands.Connection.Close(541, "INTERNAL_ERROR", 0, 0)
    broker.answers[commands.Connection.Open] = lambda _: closing
    with pytest.raises(ConnectionClosedByBroker, match="541 INTERNAL_ERROR"):
        await connect(broker)


async def handshake_of(data: bytes, error: type[AmqpError], match: str) -> None:
    broker = FalseBroker()
    broker.write(data)
    broker.hang_up()
    with pytest.raises(error, match=match):
        await connect(broker)


async def test_garbage_and_half_a_frame() -> None:
    start = codec.encode_method(commands.Connection.Start(0, 9, {}, "PLAIN", "en_US"), 0)
    await handshake_of(b"HTTP/1.1 400 Bad Request\r\n", ProtocolViolation, "not an AMQP frame")
    await handshake_of(b"AMQP\0\0\x09\x01", ProtocolViolation, r"speaks AMQP 0\.0\.9\.1")
    await handshake_of(start[:20], ConnectError, r"ended while connection\.start")
    await handshake_of(start, ConnectError, r"ended while connection\.tune")
    tune = codec.encode_method(commands.Connection.Tune(), 0)
    await handshake_of(tune, ProtocolViolation, r"connection\.tune while connection\.start")
    await handshake_of(codec.encode_ack(1, 1, False), ProtocolViolation, "a frame of type 1")


async def test_a_stream_that_breaks_in_the_handshake_is_a_connect_error(
    broker: FalseBroker,
) -> None:
    broker.client_stream = pipe = BrokenPipe(broker.client_stream)
    pipe.broken = True
    with pytest.raises(ConnectError, match=r"while connection\.start was awaited: broken pipe"):
        await connect(broker)


async def test_an_end_between_tls_and_the_first_word_is_an_error_of_its_own() -> None:
    start = codec.encode_method(commands.Connection.Start(0, 9, {}, "PLAIN", "en_US"), 0)
    for said, error in ((b"", EndedAfterTls), (start, ConnectError)):
        broker = FalseBroker()
        broker.write(said)
        broker.hang_up()

        async def connected(
            parameters: ConnectionParameters,
            _: ssl.SSLContext | None,
            broker: FalseBroker = broker,
        ) -> trio.abc.Stream:
            return await broker.stream_factory(parameters, None)

        with pytest.raises(ConnectError, match="localhost:5671 ended while") as caught:
            async with open_connection(
                ConnectionParameters(tls=True, port=5671), stream_factory=connected
            ):
                pass
        assert type(caught.value) is error


async def test_a_broker_without_plain_cannot_be_used() -> None:
    start = codec.encode_method(commands.Connection.Start(0, 9, {}, "EXTERNAL", "en_US"), 0)
    await handshake_of(start, ConnectError, "offers no PLAIN")


async def test_heartbeats_during_the_handshake_are_passed_over(broker: FalseBroker) -> None:
    broker.write(codec.HEARTBEAT_FRAME)
    await connect(broker)


class Flood(BrokenPipe):
    """A peer that sends heartbeats faster than anybody reads them; each read takes a tenth of a second of the clock."""

    def __init__(self, clock: MockClock) -> None:
        super().__init__(trio.testing.memory_stream_pair()[0])
        self._clock = clock
        self._reads = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        pass

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._reads += 1
        assert self._reads < 1000, "nobody looks at the deadline"
        self._clock.jump(0.1)
        return codec.HEARTBEAT_FRAME


async def test_a_flood_of_heartbeats_ends_at_the_deadline_too(mock_clock: MockClock) -> None:
    async def factory(*_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return Flood(mock_clock)

    with pytest.raises(HandshakeTimeout):
        async with open_connection(PARAMETERS, stream_factory=factory):
            pytest.fail("it is not open")


async def test_credentials_must_fit_the_first_frame(broker: FalseBroker) -> None:
    parameters = ConnectionParameters(password="p" * 9000)
    with pytest.raises(ValueError, match="do not fit into 8192 bytes") as caught:
        async with open_connection(parameters, stream_factory=broker.stream_factory):
            pytest.fail("it is not open")
    assert "ppp" not in str(caught.value)


async def test_a_context_for_tls_needs_an_amqps_url() -> None:
    with pytest.raises(ValueError, match="amqps"):
        async with open_connection(PARAMETERS, ssl_context=ssl.create_default_context()):
            pytest.fail("it is not open")


@pytest.mark.parametrize(
    ("offer", "heartbeat", "agreed"),
    [
        ((2047, 131072, 60), 60, (131072, 2047, 60)),
        ((0, 0, 0), 60, (131072, 2047, 60)),
        ((10, 8192, 580), 60, (8192, 10, 60)),
        ((65535, 1_000_000, 5), 60, (131072, 2047, 5)),
        ((2047, 131072, 60), 0, (131072, 2047, 0)),
        ((2047, 131072, 0), 0, (131072, 2047, 0)),
    ],
)
def test_what_is_agreed(
    offer: tuple[int, int, int], heartbeat: int, agreed: tuple[int, int, int]
) -> None:
    assert agree(commands.Connection.Tune(*offer), heartbeat) == agreed


def test_frames_of_less_than_eight_kibibytes_are_not_agreed_to() -> None:
    with pytest.raises(ConnectError, match="frame_max of 4096"):
        agree(commands.Connection.Tune(2047, 4096, 60), 60)
