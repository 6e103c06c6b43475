"""The names, object keys and buckets of a fragment's files (contract, section 3), as `messages.py` holds them."""

from __future__ import annotations

import json
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.messages import (
    MAX_LOCAL_PATH_BYTES,
    MAX_OBJECT_KEY_BYTES,
    MAX_OUTPUT_NAME_BYTES,
    MessageRefused,
    Result,
    ResultRefused,
    decode_remote_fragment,
    decode_transformation_message,
)

ID = "a" * 64


def decode_inputs(names: list[str], path: str = "key", bucket: str = "data") -> list[str]:
    files = [{"name": name, "path": path, "bucket": bucket} for name in names]
    body = json.dumps({"files": files, "metadata": {"fragment_id": ID}}).encode()
    return [file.name for file in decode_remote_fragment(body).files]


def decode_outputs(names: list[str]) -> list[str]:
    files = [{"name": name, "path": "/data-volume/x"} for name in names]
    body = json.dumps({"files": files, "metadata": {"predecessors": [ID]}}).encode()
    message = decode_transformation_message(body)
    assert isinstance(message, Result)
    return [file.name for file in message.files]


def long_name(size: int) -> str:
    """A name of so many bytes, each component at its limit but for the last."""
    name = ("a" * 255 + "/") * (size // 256)
    return name + "b" * (size - len(name))


@pytest.mark.parametrize(
    "name",
    ["x", "a/b/c.txt", "...", "..x", ".x", "x.", " ", "a b", "é" * 127, "\n", "\\", "-", "~", "%2e%2e"],
)  # fmt: skip
def test_any_other_name_is_in_order(name: str) -> None:
    assert decode_inputs([name]) == [name]
    assert decode_outputs([name]) == [name]
    assert decode_inputs([name, "second"]) == [name, "second"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/", "/x", "x/", "a//b", "./x", "a/./b", "../x", "a/../b", "a/..", "a/.", "\0", "a\0b", "a/\0"],
)  # fmt: skip
def test_a_name_that_is_no_plain_relative_path_is_refused(name: str) -> None:
    for names in ([name], ["first", name]):
        place = rf"at `\$\.files\[{len(names) - 1}\]\.name`$"
        with pytest.raises(MessageRefused, match=place):
            decode_inputs(names)
        with pytest.raises(ResultRefused, match=place) as refusal:
            decode_outputs(names)
        assert refusal.value.predecessors == (ID,)


@given(name=st.text(alphabet="ab./\0", min_size=1, max_size=8))
def test_a_name_passes_exactly_if_it_is_normal_and_relative(name: str) -> None:
    in_order = (
        posixpath.normpath(name) == name
        and not name.startswith(("/", "../"))
        and name not in {".", ".."}
        and "\0" not in name
    )
    if in_order:
        assert decode_inputs([name]) == [name]
    else:
        with pytest.raises(MessageRefused):
            decode_inputs([name])


def test_a_component_has_at_most_255_bytes() -> None:
    for name in ("a" * 255, "é" * 127 + "a", f"x/{'a' * 255}/y"):
        assert decode_inputs([name]) == [name]
    for name in ("a" * 256, "é" * 128, f"x/{'a' * 256}/y"):
        with pytest.raises(MessageRefused, match="longer than 255 bytes"):
            decode_inputs([name])


def test_an_inputs_name_has_at_most_as_many_bytes_as_a_path() -> None:
    longest = long_name(MAX_LOCAL_PATH_BYTES)
    assert len(longest) == 4095
    assert decode_inputs([longest]) == [longest]
    with pytest.raises(MessageRefused, match="this has 4096"):
        decode_inputs([long_name(4096)])


def test_an_outputs_name_has_at_most_947_bytes() -> None:
    assert MAX_OUTPUT_NAME_BYTES == 947
    longest = long_name(944) + "xé"
    assert decode_outputs([longest]) == [longest]
    with pytest.raises(ResultRefused, match=r"at most 947 bytes - at `\$\.files\[1\]\.name`$"):
        decode_outputs(["x", longest + "y"])


def test_an_absolute_name_is_told_to_be_one() -> None:
    with pytest.raises(
        ResultRefused, match=r"the name '/x' begins with a /, and a name is relative"
    ):
        decode_outputs(["/x"])


@pytest.mark.parametrize("path", ["x", "é" * 512, "a" * 1024, "../../etc/passwd", "/x", "a\nb"])
def test_an_object_key_is_any_text_of_1_to_1024_bytes(path: str) -> None:
    assert decode_inputs(["x"], path=path) == ["x"]


@pytest.mark.parametrize(("path", "size"), [("", 0), ("a" * 1025, 1025), ("é" * 512 + "a", 1025)])
def test_any_other_object_key_is_refused(path: str, size: int) -> None:
    assert MAX_OBJECT_KEY_BYTES == 1024
    with pytest.raises(MessageRefused, match=rf"this has {size} - at `\$\.files\[0\]\.path`$"):
        decode_inputs(["x"], path=path)


@pytest.mark.parametrize("bucket", ["data", "a" * 255, "..."])
def test_a_bucket_is_one_component(bucket: str) -> None:
    assert decode_inputs(["x"], bucket=bucket) == ["x"]


@pytest.mark.parametrize("bucket", ["", ".", "..", "a/b", "a\0b", "a" * 256])
def test_anything_else_is_no_bucket(bucket: str) -> None:
    with pytest.raises(MessageRefused, match=r"at `\$\.files\[0\]\.bucket`$"):
        decode_inputs(["x"], bucket=bucket)


def test_two_files_of_one_name_are_refused_at_the_second() -> None:
    with pytest.raises(
        MessageRefused, match=r"two files are named 'x' - at `\$\.files\[2\]\.name`"
    ):
        decode_inputs(["x", "y", "x"])
    with pytest.raises(ResultRefused, match=r"two files are named 'x' - at `\$\.files\[2\]\.name`"):
        decode_outputs(["x", "y", "x"])


@pytest.mark.parametrize(
    "names", [["a", "a/b"], ["a/b", "a"], ["a/b/c/d", "x", "a/b"], ["a", "b", "a/b/c/d"]]
)
def test_no_file_is_a_directory_of_another(names: list[str]) -> None:
    with pytest.raises(MessageRefused, match="is a file and a directory of"):
        decode_inputs(names)
    with pytest.raises(ResultRefused, match="is a file and a directory of"):
        decode_outputs(names)


def test_names_that_only_begin_alike_do_not_clash() -> None:
    names = ["a", "ab/c", "a.b", "b/a", "b/ab"]
    assert decode_inputs(names) == names


NAMES = st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join), max_size=4)


@given(names=NAMES.filter(bool))
def test_names_pass_together_exactly_if_a_file_system_could_hold_them(names: list[str]) -> None:
    directories = {"/".join(name.split("/")[:depth]) for name in names for depth in (1, 2)}
    directories = {
        each for each in directories if any(name.startswith(f"{each}/") for name in names)
    }
    if len(set(names)) == len(names) and not directories & set(names):
        assert decode_inputs(names) == names
    else:
        with pytest.raises(MessageRefused):
            decode_inputs(names)
