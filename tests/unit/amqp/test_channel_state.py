from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands

from iterum_sidecar.amqp import Consumer, ProtocolViolation, codec
from iterum_sidecar.amqp.channel_state import ChannelState
from iterum_sidecar.amqp.confirmations import Confirmations
from iterum_sidecar.amqp.link import Link

method_payloads = st.tuples(
    st.just(codec.METHOD),
    st.builds(
        lambda index, arguments: index.to_bytes(4) + arguments,
        st.sampled_from(sorted(commands.INDEX_MAPPING)),
        st.binary(max_size=40),
    ),
)
# What a broker may send in the middle of everything.
plausible = st.sampled_from(
    [
        (codec.METHOD, codec.encode_method(method, 1)[7:-1])
        for method in (
            commands.Basic.Deliver("1-1", 1, False, "", "queue"),
            commands.Basic.Deliver("1-1", 2, False, "", "queue"),
            commands.Basic.Return(312, "NO_ROUTE", "", "queue"),
            commands.Basic.Ack(1, True),
            commands.Basic.Nack(2),
            commands.Basic.Cancel("1-1", False),
            commands.Channel.Flow(False),
            commands.Channel.Close(404, "NOT_FOUND", 50, 10),
            commands.Channel.CloseOk(),
        )
    ]
    + [
        (codec.HEADER, bytes.fromhex("003c0000 0000000000000002 0000")),
        (codec.HEADER, bytes.fromhex("003c0000 0000000000000000 0000")),
        (codec.HEADER, bytes.fromhex("003c0000 00000000ffffffff 0000")),
        (codec.BODY, b"x"),
        (codec.BODY, b"xx"),
    ]
)
anything = st.tuples(st.sampled_from([1, 2, 3, 8]), st.binary(max_size=40))


async def cancel(_: Consumer) -> None:
    await trio.lowlevel.checkpoint()


@given(st.lists(plausible | method_payloads | anything, max_size=20))
def test_no_frames_raise_anything_but_the_typed_error(frames: list[tuple[int, bytes]]) -> None:
    released: list[int] = []
    state = ChannelState(Link(131072, 1000), 1, released.append)
    state.confirmations = Confirmations()
    for _ in range(2):
        state.confirmations.add(None)
    consumer = Consumer("1-1", "queue", cancel)
    state.consumers[b"1-1"] = consumer
    try:
        for kind, payload in frames:
            # The number is free for another channel from now on, and this state is out of reach.
            if released:
                break
            state.handle(kind, payload)
    except ProtocolViolation:
        pass
    assert len(released) <= 1
    assert len(state.unacknowledged) <= 2
