"""The messages of the contract's sections 2 and 3; their names and paths are in `test_names.py`."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.framing import FrameReader, encode_frame
from iterum_sidecar.messages import (
    KILL_MESSAGE,
    Done,
    Kill,
    LocalFile,
    LocalFragment,
    LocalMetadata,
    MessageRefused,
    RemoteFile,
    RemoteFragment,
    RemoteMetadata,
    Result,
    ResultRefused,
    decode_remote_fragment,
    decode_transformation_message,
    encode_lineage,
    encode_message,
    is_fragment_id,
)

ID = "a" * 64
OTHER = "b" * 64
ABSENT = object()
DEEP = b"[" * 100_000 + b"]" * 100_000


def changed(message: dict[str, object], **changes: object) -> dict[str, object]:
    return {key: value for key, value in (message | changes).items() if value is not ABSENT}


def remote(inner: dict[str, object] | None = None, **changes: object) -> bytes:
    file = {"name": "cat.jpg", "path": "iterum_data/cat.jpg", "bucket": "data"}
    known: dict[str, object] = {"fragment_id": ID, "predecessors": [OTHER]}
    message: dict[str, object] = {"files": [file], "metadata": changed(known, **(inner or {}))}
    return json.dumps(changed(message, **changes)).encode()


def result(inner: dict[str, object] | None = None, **changes: object) -> bytes:
    known: dict[str, object] = {
        "output_channel": None,
        "custom": None,
        "fragment_id": None,
        "predecessors": [ID],
    }
    file = {"name": "edges_cat.jpg", "path": "/data-volume/output/cat.jpg"}
    message: dict[str, object] = {"files": [file], "metadata": changed(known, **(inner or {}))}
    return json.dumps(changed(message, **changes)).encode()


# -- section 2, byte for byte


def test_the_captured_frames_of_pyterum_are_read() -> None:
    captured = (
        b"\xee\x00\x00\x00" + result() + b'\x53\x00\x00\x00{"fragment_id": "' + ID.encode() + b'"}'
        b'\x16\x00\x00\x00{"status": "complete"}'
    )
    output, done, kill = map(decode_transformation_message, FrameReader().feed(captured))
    assert isinstance(output, Result)
    assert output.files == [LocalFile("edges_cat.jpg", "/data-volume/output/cat.jpg")]
    assert (output.metadata.predecessors, output.metadata.output_channel) == ([ID], None)
    assert bytes(output.metadata.custom) == b""
    assert done == Done(ID)
    assert kill == Kill()


def test_the_frames_to_the_transformation_are_what_the_contract_shows() -> None:
    custom = decode_remote_fragment(remote({"custom": {"k": 1}})).metadata.custom
    files = [LocalFile("cat.jpg", "/data-volume/1/cat.jpg")]
    head = '{"files":[{"name":"cat.jpg","path":"/data-volume/1/cat.jpg"}],"metadata":'
    ids = f'{{"fragment_id":"{ID}","predecessors":["{OTHER}"]'
    with_custom = encode_message(LocalFragment(files, LocalMetadata(ID, [OTHER], custom)))
    assert with_custom.decode() == f'{head}{ids},"custom":{{"k": 1}}}}}}'
    without = encode_message(LocalFragment(files, LocalMetadata(ID, [OTHER])))
    assert without.decode() == f"{head}{ids}}}}}"
    assert encode_frame(KILL_MESSAGE) == b'\x15\x00\x00\x00{"status":"complete"}'


def test_what_goes_on_a_queue_is_what_the_contract_shows() -> None:
    fragment = RemoteFragment(
        [RemoteFile("é.jpg", "iterum_data/é.jpg", "data")],
        RemoteMetadata(ID, [], target_queue="next"),
    )
    body = encode_message(fragment)
    assert body.decode() == (
        '{"files":[{"name":"é.jpg","path":"iterum_data/é.jpg","bucket":"data"}],'
        f'"metadata":{{"fragment_id":"{ID}","predecessors":[],"target_queue":"next"}}}}'
    )
    assert encode_lineage('a "step"', body) == (
        b'{"transformation_step":"a \\"step\\"","description":' + body + b"}"
    )


# -- which message it is


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (result({}, fragment_id=ID, status="complete"), Result),
        (f'{{"status":"complete","fragment_id":"{ID}"}}'.encode(), Done),
        (f'{{"files":[],"fragment_id":"{ID}","status":"complete"}}'.encode(), Done),
        (f'{{"files": [ \n] ,"fragment_id":"{ID}"}}'.encode(), Done),
        (f'{{"files":null,"fragment_id":"{ID}"}}'.encode(), Done),
        (b'{"fragment_id":"short","status":"complete"}', Kill),
        (b'{"fragment_id":null,"files":[],"status":"complete","more":{"unknown":[1]}}', Kill),
        (b'{"fragment_id":64,"status":"complete"}', Kill),
        (b'{"fragment_id":["' + ID.encode() + b'"],"status":"complete"}', Kill),
        (b'{"fragment_id":"' + b"\\u0061" * 64 + b'"}', Done),
        (b'{"fragment_id":"' + b"\\ud83d\\ude00" * 64 + b'"}', Done),
        (b'{"status" : "\\u0063omplete" }', Kill),
    ],
)
def test_messages_are_told_apart_in_the_order_of_the_contract(
    message: bytes, kind: type[object]
) -> None:
    assert type(decode_transformation_message(message)) is kind


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"complete"',
        b"{}",
        b'{"status":""}',
        b'{"status":"Complete"}',
        b'{"status":["complete"]}',
        b'{"status":"complete"}{"status":"complete"}',
        b'{"files":{}}',
        b'{"files":"x"}',
        b'{"files":1}',
        f'{{"fragment_id":"{"a" * 63}"}}'.encode(),
        f'{{"fragment_id":"{"a" * 64}\\n"}}'.encode(),
        f'{{"fragment_id":["{ID}"]}}'.encode(),
        b'{"fragment_id":"\xff"}',
        b'{"fragment_id":"\\ud800"}',
        b'{"fragment_id":1e999}',
        b'{"fragment_id":' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf" + KILL_MESSAGE,
    ],
)
def test_anything_else_is_refused(message: bytes) -> None:
    with pytest.raises(MessageRefused) as refusal:
        decode_transformation_message(message)
    assert not isinstance(refusal.value, ResultRefused)


@given(data=st.data(), message=st.sampled_from([result(), remote(), KILL_MESSAGE]))
def test_damaged_messages_are_read_or_refused_and_nothing_else(
    data: st.DataObject, message: bytes
) -> None:
    start = data.draw(st.integers(0, len(message)))
    end = data.draw(st.integers(start, min(start + 3, len(message))))
    damaged = message[:start] + data.draw(st.binary(max_size=4)) + message[end:]
    for decode in (decode_transformation_message, decode_remote_fragment):
        # Any other error than a refusal ends the sidecar.
        with suppress(MessageRefused):
            assert isinstance(decode(damaged), (Result, Done, Kill, RemoteFragment))


@pytest.mark.parametrize("place", ["files", "fragment_id", "status", "unknown"])
def test_a_message_nested_too_deep_is_refused(place: str) -> None:
    message = b'{"' + place.encode() + b'":' + DEEP + b"}"
    with pytest.raises(MessageRefused):
        decode_transformation_message(message)


def test_a_fragment_nested_too_deep_is_refused() -> None:
    body = remote({"custom": "CUSTOM"}).replace(b'"CUSTOM"', DEEP)
    with pytest.raises(MessageRefused):
        decode_remote_fragment(body)


def test_a_result_nested_too_deep_is_refused() -> None:
    with pytest.raises(MessageRefused):
        decode_transformation_message(
            result({"custom": "CUSTOM"}).replace(b'"CUSTOM"', DEEP),
        )


@pytest.mark.parametrize("files", ["[[]]", "[ [ ] ]"])
def test_a_list_that_holds_an_empty_list_is_not_empty(files: str) -> None:
    message = f'{{"files":{files},"fragment_id":"{ID}","metadata":{{"predecessors":["{ID}"]}}}}'
    with pytest.raises(ResultRefused):
        decode_transformation_message(message.encode())


# -- results


def test_a_transformations_own_id_is_not_looked_at() -> None:
    message = decode_transformation_message(result({"fragment_id": 17}))
    assert isinstance(message, Result)


@pytest.mark.parametrize("metadata", [{}, {"output_channel": ABSENT, "custom": ABSENT}])
def test_null_and_absent_are_the_same_in_a_result(metadata: dict[str, object]) -> None:
    message = decode_transformation_message(result(metadata | {"fragment_id": ABSENT}))
    assert isinstance(message, Result)
    assert message.metadata.output_channel is None
    assert bytes(message.metadata.custom) == b""


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (result({"predecessors": [ID, "x"]}), "$.metadata.predecessors[1]"),
        (result({"predecessors": [ID, 5]}), "$.metadata.predecessors[1]"),
        (result({"output_channel": 5}), "$.metadata.output_channel"),
        (result(files=[{"name": "x"}]), "$.files[0]"),
        (result(files=[{"name": "x", "path": None}]), "$.files[0].path"),
        (result(files=[{"name": "../x", "path": "/v/x"}]), "$.files[0].name"),
        (result(files=["x"]), "$.files[0]"),
        (result(files={"0": "x"}), "$.files"),
    ],
)
def test_a_refused_result_keeps_its_predecessors_and_says_where_and_why(
    message: bytes, place: str
) -> None:
    with pytest.raises(ResultRefused, match=f"^bad result: .+ - at `{re.escape(place)}`$") as error:
        decode_transformation_message(message)
    assert error.value.predecessors == (ID,)


@pytest.mark.parametrize("where", ["name", "path"])
def test_a_result_that_is_not_utf_8_is_refused_and_keeps_its_predecessors(where: str) -> None:
    message = result(files=[{"name": "x", "path": "/v/x", where: "BYTES"}])
    with pytest.raises(ResultRefused) as refusal:
        decode_transformation_message(message.replace(b"BYTES", b"\xff"))
    assert refusal.value.predecessors == (ID,)


@pytest.mark.parametrize(
    "message",
    [
        result(metadata=ABSENT),
        result(metadata=None),
        result({"predecessors": ABSENT}),
        result({"predecessors": None}),
        result({"predecessors": []}),
        result({"predecessors": ["x", None]}),
        result({"predecessors": ID}),
    ],
)
def test_a_result_without_a_predecessor_is_no_result_to_settle_by(message: bytes) -> None:
    with pytest.raises(MessageRefused, match="names no predecessor") as refusal:
        decode_transformation_message(message)
    assert not isinstance(refusal.value, ResultRefused)


def test_of_more_predecessors_than_anybody_names_none_is_looked_at() -> None:
    """A list of a megabyte and more may be of anything, and to look through it takes its time."""
    for count, kind in ((15_000, ResultRefused), (16_000, MessageRefused)):
        with pytest.raises(MessageRefused) as refusal:
            decode_transformation_message(
                result({"predecessors": [ID] * count, "custom": 1}, files=["x"])
            )
        assert type(refusal.value) is kind


# -- remote fragments


@pytest.mark.parametrize("predecessors", [ABSENT, None, []])
def test_a_go_nil_slice_of_predecessors_is_an_empty_list(predecessors: object) -> None:
    fragment = decode_remote_fragment(remote({"predecessors": predecessors}))
    assert fragment.metadata.predecessors == []
    assert json.loads(encode_message(fragment))["metadata"]["predecessors"] == []


def test_unknown_keys_are_ignored() -> None:
    file = {"name": "x", "path": "p", "bucket": "data", "size": 5}
    fragment = decode_remote_fragment(remote({"more": {}}, files=[file], extra=[1, {"files": 2}]))
    assert fragment == decode_remote_fragment(remote(files=[file]))


@pytest.mark.parametrize("target_queue", [ABSENT, None])
def test_an_absent_target_queue_is_written_as_none(target_queue: object) -> None:
    body = encode_message(decode_remote_fragment(remote({"target_queue": target_queue})))
    assert set(json.loads(body)["metadata"]) == {"fragment_id", "predecessors"}


def test_gos_escapes_are_the_characters_they_stand_for() -> None:
    body = remote({"target_queue": "<&>"}).replace(b"<&>", b"\\u003c\\u0026\\u003e")
    body = body.replace(b"cat.jpg", b"\\u003ccat\\u003e")
    fragment = decode_remote_fragment(body)
    assert (fragment.files[0].name, fragment.metadata.target_queue) == ("<cat>", "<&>")
    assert b'"name":"<cat>"' in encode_message(fragment)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (remote(files=[]), "$.files"),
        (remote(files=None), "$.files"),
        (remote(files=[{"name": "x", "path": "p"}]), "$.files[0]"),
        (remote(files=[{"name": 1, "path": "p", "bucket": "data"}]), "$.files[0].name"),
        (remote(metadata=None), "$.metadata"),
        (remote({"fragment_id": ABSENT}), "$.metadata"),
        (remote({"fragment_id": None}), "$.metadata.fragment_id"),
        (remote({"fragment_id": ID + "\n"}), "$.metadata.fragment_id"),
        (remote({"predecessors": ["x"]}), "$.metadata.predecessors[0]"),
        (remote({"predecessors": "x"}), "$.metadata.predecessors"),
        (remote({"target_queue": 5}), "$.metadata.target_queue"),
    ],
)
def test_a_refusal_names_the_place(body: bytes, place: str) -> None:
    with pytest.raises(MessageRefused, match=f"^not a fragment: .+ - at `{re.escape(place)}`$"):
        decode_remote_fragment(body)


@pytest.mark.parametrize(
    "body",
    [
        remote().replace(b"cat.jpg", b"\xff"),
        remote().replace(b"cat.jpg", b"\\ud800"),
        remote()[:-1],
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(MessageRefused, match=r"^not a fragment: "):
        decode_remote_fragment(body)


# -- the user's own metadata


@given(custom=st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner)))  # fmt: skip
def test_custom_metadata_passes_byte_for_byte(custom: object) -> None:
    written = json.dumps({"it": custom}, ensure_ascii=False, indent=1).encode()
    body = remote({"custom": "CUSTOM"}).replace(b'"CUSTOM"', b" " + written + b" ")
    fragment = decode_remote_fragment(body)
    assert bytes(fragment.metadata.custom) == written
    metadata = LocalMetadata(ID, [], fragment.metadata.custom)
    assert written in encode_message(LocalFragment([], metadata))
    message = decode_transformation_message(
        result({"custom": "CUSTOM"}).replace(b'"CUSTOM"', written)
    )
    assert isinstance(message, Result)
    assert bytes(message.metadata.custom) == written


@pytest.mark.parametrize("custom", [b'"\xff"', b'"\x01"', b'"a\nb"', b'{"\xff":1}'])
def test_custom_metadata_that_no_peer_could_read_is_refused(custom: bytes) -> None:
    with pytest.raises(MessageRefused):
        decode_remote_fragment(remote({"custom": "CUSTOM"}).replace(b'"CUSTOM"', custom))
    with pytest.raises(MessageRefused):
        decode_transformation_message(
            result({"custom": "CUSTOM"}).replace(b'"CUSTOM"', custom),
        )


# -- IDs


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), min_size=60, max_size=66))
def test_an_id_is_64_characters_of_its_alphabet(text: str) -> None:
    in_order = len(text) == 64 and all(
        each.isascii() and (each.isalnum() or each in "_-") for each in text
    )
    assert is_fragment_id(text) == in_order


@pytest.mark.parametrize("text", ["a" * 64, "Z" * 64, "09_-" * 16])
def test_ids_of_all_allowed_characters_pass(text: str) -> None:
    assert is_fragment_id(text)


@pytest.mark.parametrize(
    "value",
    ["", "a" * 63, "a" * 65, ID + "\n", "\n" + ID, "a" * 63 + "\n", "é" * 64, "a" * 63 + "٣", 5, None, [ID]],
)  # fmt: skip
def test_anything_else_is_no_id(value: object) -> None:
    assert not is_fragment_id(value)
