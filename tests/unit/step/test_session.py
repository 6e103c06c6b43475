"""One pair of connections without any I/O."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.framing import FrameReader, encode_frame
from iterum_sidecar.step.fragments import Batch, Fragment, making_of
from iterum_sidecar.step.session import Session, Work
from iterum_sidecar.step.volume import Volume
from iterum_sidecar.step.wire import SidecarRefused
from tests.unit.row import fragment_id

if TYPE_CHECKING:
    from pathlib import Path

KILL = encode_frame(b'{"status":"complete"}')


def handout(number: int, *, accepts: object = None, custom: object = None) -> bytes:
    message = {
        "files": [{"name": f"{number}.txt", "path": f"/v/{number}.txt"}],
        "metadata": {
            "fragment_id": fragment_id(number),
            "predecessors": [fragment_id(900)],
            "custom": custom,
        },
        "accepts": accepts,
    }
    return encode_frame(json.dumps(message).encode())


def messages(pieces: list[bytes] | None) -> list[Any]:
    assert pieces is not None
    return [json.loads(payload) for payload in FrameReader().feed(b"".join(pieces))]


def over(session: Session) -> bool:
    return session.is_over


def ids(work: Work | None) -> list[str]:
    assert isinstance(work, Batch)
    return [each.id for each in work]


def test_a_fragment_is_what_its_frame_says(tmp_path: Path) -> None:
    session = Session(Volume(str(tmp_path)))
    assert session.receive(handout(1, custom={"a": [1]})) == []
    work = session.next_work()
    assert isinstance(work, Fragment)
    assert (work.id, work.predecessors, work.custom) == (
        fragment_id(1),
        (fragment_id(900),),
        {"a": [1]},
    )
    assert [(file.name, str(file.path)) for file in work.files] == [("1.txt", "/v/1.txt")]
    assert session.next_work() is None


def test_a_fragment_of_go_may_have_nulls(tmp_path: Path) -> None:
    session = Session(Volume(str(tmp_path)))
    own = fragment_id(1)
    session.receive(
        encode_frame(
            f'{{"files":null,"metadata":{{"fragment_id":"{own}","predecessors":null,"custom":null}}}}'.encode()
        )
    )
    work = session.next_work()
    assert isinstance(work, Fragment)
    assert (work.files, work.predecessors, work.custom) == ((), (), {})
    assert not session.killed


@pytest.mark.parametrize("status", ['"complete"', '""', "null"])
def test_any_object_with_a_status_and_no_files_is_the_end(tmp_path: Path, status: str) -> None:
    session = Session(Volume(str(tmp_path)))
    session.receive(handout(1))
    session.receive(encode_frame(f'{{"status":{status}}}'.encode()))
    assert session.killed
    assert not over(session)  # the fragment is still to be worked
    assert session.next_work() is not None
    assert over(session)
    assert messages(session.goodbye()) == [{"status": "complete"}]


@pytest.mark.parametrize(
    "payload",
    [b"", b"nonsense", b"[]", b"{}", b'{"files":[]}', b'{"files":[{"name":"a"}]}', b"\xff"],
)
def test_what_is_no_message_is_refused(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(SidecarRefused, match="what the sidecar sent is n"):
        Session(Volume(str(tmp_path))).receive(encode_frame(payload))


def test_a_length_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SidecarRefused, match="4,294,967,295 bytes was announced"):
        Session(Volume(str(tmp_path))).receive(b"\xff" * 4)


@given(data=st.data())
def test_frames_may_come_in_any_pieces_and_be_filled_up_with_blanks(data: st.DataObject) -> None:
    padded = encode_frame(handout(1)[4:].ljust(1000))
    stream = padded + handout(2) + KILL
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    session = Session(Volume("/v"))
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        session.receive(stream[start:end])
        while (work := session.next_work()) is not None:
            assert isinstance(work, Fragment)
            found.append(work.id)
    assert found == [fragment_id(1), fragment_id(2)]
    assert session.is_over


def test_results_go_before_the_done(tmp_path: Path) -> None:
    session = Session(Volume(str(tmp_path)))
    session.receive(handout(1))
    work = session.next_work()
    assert work is not None
    for name in ("a.txt", "b.txt"):
        with work.create(name, channel="c" if name == "b.txt" else None) as path:
            path.write_text("x")
    sent = messages(session.done(work, making_of(work).finish()))
    assert [each.get("files", [{}])[0].get("name") for each in sent] == ["a.txt", "b.txt", None]
    assert sent[0]["metadata"] == {"predecessors": [fragment_id(1)]}
    assert sent[1]["metadata"] == {"predecessors": [fragment_id(1)], "output_channel": "c"}
    assert sent[2] == {"fragment_id": fragment_id(1)}


def test_frames_are_joined_only_for_a_sidecar_that_says_what_it_accepts(tmp_path: Path) -> None:
    for accepts, pieces in ((["failed"], 1), (None, 2)):
        session = Session(Volume(str(tmp_path)))
        session.receive(handout(1, accepts=accepts))
        work = session.next_work()
        assert work is not None
        with work.create("a") as path:
            path.touch()
        assert len(session.done(work, making_of(work).finish())) == pieces


def test_a_failure_is_told_only_to_a_sidecar_that_accepts_it(tmp_path: Path) -> None:
    session = Session(Volume(str(tmp_path)))
    session.receive(handout(1, accepts=["failed", "something new", 7]))
    work = session.next_work()
    assert work is not None
    assert messages(session.failed(work, "because")) == [
        {"failed": {"fragment_id": fragment_id(1), "reason": "because"}}
    ]
    session = Session(Volume(str(tmp_path)))
    session.receive(handout(1, accepts=["gathers"]))
    work = session.next_work()
    assert work is not None
    assert session.failed(work, "because") is None


def test_a_batch_is_complete_or_the_last(tmp_path: Path) -> None:
    session = Session(Volume(str(tmp_path)), 2)
    session.receive(handout(1))
    assert session.next_work() is None
    session.receive(handout(2) + handout(3))
    first = session.next_work()
    assert ids(first) == [fragment_id(1), fragment_id(2)]
    assert session.next_work() is None
    assert not over(session)
    session.receive(KILL)
    assert not over(session)
    assert ids(session.next_work()) == [fragment_id(3)]
    assert over(session)
    assert session.next_work() is None


def test_every_fragment_of_a_batch_is_done_or_failed(tmp_path: Path) -> None:
    session = Session(Volume(str(tmp_path)), 2)
    session.receive(handout(1, accepts=["failed"]) + handout(2, accepts=["failed"]))
    work = session.next_work()
    assert work is not None
    with work.create("a") as path:
        path.touch()
    result, *dones = messages(session.done(work, making_of(work).finish()))
    assert result["metadata"]["predecessors"] == [fragment_id(1), fragment_id(2)]
    assert dones == [{"fragment_id": fragment_id(1)}, {"fragment_id": fragment_id(2)}]
    failed = messages(session.failed(work, "no"))
    assert [each["failed"]["fragment_id"] for each in failed] == [fragment_id(1), fragment_id(2)]


@pytest.mark.parametrize(("gather", "said"), [(3, 3), (10**9, 65535)])
def test_gathering_is_said_once_and_to_whom_accepts_it(
    tmp_path: Path, gather: int, said: int
) -> None:
    session = Session(Volume(str(tmp_path)), gather)
    assert session.receive(handout(1)) == []
    sent = session.receive(handout(2, accepts=["gathers"]) + handout(3, accepts=["gathers"]))
    assert messages(sent) == [{"gathers": {"fragments": said}}]
    assert session.receive(handout(4, accepts=["gathers"])) == []


def test_a_step_of_one_fragment_says_nothing_of_gathering(tmp_path: Path) -> None:
    assert Session(Volume(str(tmp_path))).receive(handout(1, accepts=["gathers"])) == []
