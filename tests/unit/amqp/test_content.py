from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.header import ContentHeader

from iterum_sidecar.amqp import ProtocolViolation
from iterum_sidecar.amqp.content import BodyTooLarge, ContentAssembler

DELIVER = (b"tag", 1, False, "", "queue")


def header(size: int, properties: commands.Basic.Properties | None = None) -> bytes:
    return ContentHeader(0, size, properties).marshal()


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_a_body_is_put_together_from_any_pieces(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    assembler = ContentAssembler(200)
    for _ in range(2):
        assert not assembler.is_expecting
        assembler.begin(DELIVER)
        message = assembler.header(header(len(body)))
        for piece in pieces:
            if message is not None:
                break
            message = assembler.body(piece)
        assert message is not None
        assert message[0] is DELIVER
        assert message[2] == body


def test_properties_that_come_again_are_recognised_and_others_are_not() -> None:
    assembler = ContentAssembler(10)
    seen = []
    for name in ("a", "a", "b", "a"):
        assembler.begin(DELIVER)
        message = assembler.header(header(0, commands.Basic.Properties(message_id=name)))
        assert message is not None
        assert message[1].message_id == name
        seen.append(message[1])
    assert seen[0] is seen[1]


def test_a_body_over_the_limit_is_refused_at_its_announcement() -> None:
    assembler = ContentAssembler(10)
    assembler.begin(DELIVER)
    assert assembler.header(header(10)) is None
    assembler = ContentAssembler(10)
    assembler.begin(DELIVER)
    with pytest.raises(BodyTooLarge):
        assembler.header(header(11))


def test_frames_out_of_order_are_violations() -> None:
    assembler = ContentAssembler(10)
    with pytest.raises(ProtocolViolation):
        assembler.header(header(1))
    with pytest.raises(ProtocolViolation):
        assembler.body(b"x")
    with pytest.raises(ProtocolViolation):
        assembler.body(b"")
    assembler.begin(DELIVER)
    with pytest.raises(ProtocolViolation):
        assembler.body(b"")
    assembler.header(header(2))
    with pytest.raises(ProtocolViolation):
        assembler.header(header(1))
    with pytest.raises(ProtocolViolation):
        assembler.body(b"xxx")
