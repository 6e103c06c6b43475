from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.dead_letters.choosing import Choosing, Selection
from iterum_sidecar.dead_letters.errors import NotDone
from iterum_sidecar.dead_letters.letter import read_letter
from iterum_sidecar.dead_letters.showing import Showing

from .letters import ID, delivery, foreign

if TYPE_CHECKING:
    from iterum_sidecar.amqp import Delivery


def showing(*found: Delivery, form: str = "text", raw: bool = False) -> bytes:
    """What is told of messages that were found; the output takes bytes too, as standard output does."""
    action = Showing("json" if form == "json" else "text", "a-dead-letter", raw=raw)
    action._found += [(read_letter(each), each) for each in found]
    raw_output = io.BytesIO()
    output = io.TextIOWrapper(raw_output, encoding="utf-8")
    action.tell(output, Choosing(Selection(), "a-dead-letter"))
    output.flush()
    return raw_output.getvalue()


def body_as_told(body: bytes) -> str:
    _, _, told = showing(foreign(body)).decode().partition("\nbody")
    return told


def test_headers_properties_and_a_body_in_indents() -> None:
    told = showing(delivery(b'{"metadata":{"fragment_id":"%s"},"n":1.0e400}' % ID.encode()))
    text = told.decode()
    assert text.startswith(f"{ID}\nin a-dead-letter, 107 bytes, sha256 ")
    assert "\n  x-iterum-attempts  2\n" in text
    assert "\n  x-iterum-reason    get b/a: HTTP 404 NoSuchKey\n" in text
    assert text.endswith(
        f'\nbody\n{{\n  "metadata": {{\n    "fragment_id": "{ID}"\n  }},\n  "n": 1.0e400\n}}\n'
    )


def test_json_stays_what_it_is_although_a_terminal_is_spared() -> None:
    body = b'{"a": "\xc2\x9b[2J\xe2\x80\xae\x7f\xf0\x9d\x85\xb3", "a": "\xc3\xa9\xe6\xbc\xa2"}'
    told = body_as_told(body)
    assert told == '\n{\n  "a": "\\u009b[2J\\u202e\\u007f\\ud834\\udd73",\n  "a": "é漢"\n}\n'
    pairs = json.loads(told, object_pairs_hook=list)
    assert pairs == json.loads(body, object_pairs_hook=list)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", ": empty\n"),
        (
            b"\x1b[2J \\x1b \xff",
            ", which is no JSON; what is not printable is escaped\n\\x1b[2J \\\\x1b \\xff\n",
        ),
        (
            b"two\nlines\r\n",
            ", which is no JSON; what is not printable is escaped\ntwo\nlines\\x0d\n\n",
        ),
        (
            b'{"a": "\xff"}',
            ', which is no JSON; what is not printable is escaped\n{"a": "\\xff"}\n',
        ),
    ],
)
def test_what_is_no_json_is_told_with_escapes(body: bytes, told: str) -> None:
    assert body_as_told(body) == told


@given(st.binary(max_size=100), st.dictionaries(st.text(), st.text() | st.binary(), max_size=3))
def test_nothing_steers_the_terminal(body: bytes, headers: dict[str, object]) -> None:
    told = showing(foreign(body, **headers)).decode()
    assert all(line.isprintable() for line in told.split("\n"))
    assert showing(foreign(body, **headers), form="json").strip().decode().isprintable()


def test_raw_is_byte_for_byte() -> None:
    body = bytes(range(256))
    assert showing(foreign(body), raw=True) == body
    assert showing(foreign(body), foreign(body), raw=True) == body
    with pytest.raises(NotDone, match="2 different letters have this ID"):
        showing(foreign(b"a"), foreign(b"b"), raw=True)
