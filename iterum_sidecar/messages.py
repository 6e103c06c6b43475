"""Every message of the wire contract between a sidecar and its peers; those of the fragmenter are in `local/fragmenter_messages.py`.

Decoding is as strict as the contract and as loose as its peers need: unknown keys are ignored, `null` and an absent
key are the same where a peer writes either. What is refused says where and why (`MessageRefused`). The file is long because all that
a message may be is in it, so that it can be read in one place.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Raw, Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ACCEPTED",
    "KILL_MESSAGE",
    "MAX_LOCAL_PATH_BYTES",
    "MAX_OBJECT_KEY_BYTES",
    "MAX_OUTPUT_NAME_BYTES",
    "MOST_GATHERED",
    "Done",
    "Failed",
    "FragmentId",
    "Gathers",
    "Kill",
    "LocalFile",
    "LocalFragment",
    "LocalMetadata",
    "MessageRefused",
    "RemoteFile",
    "RemoteFragment",
    "RemoteMetadata",
    "Result",
    "ResultMetadata",
    "ResultRefused",
    "decode_remote_fragment",
    "decode_transformation_message",
    "encode_lineage",
    "encode_message",
    "is_fragment_id",
    "short_string",
    "signature_of",
]

#: PATH_MAX less its closing NUL (limits.h).
MAX_LOCAL_PATH_BYTES = 4095
#: Amazon S3 User Guide, "Naming Amazon S3 objects"; MinIO and others keep to it.
MAX_OBJECT_KEY_BYTES = 1024
#: An output's key is `iterum_data/<64 characters>/<name>`.
MAX_OUTPUT_NAME_BYTES = MAX_OBJECT_KEY_BYTES - len("iterum_data/") - 64 - len("/")
#: NAME_MAX of every file system that is in use (limits.h).
MAX_COMPONENT_BYTES = 255
#: Longest bucket name that any server takes; S3's own rule is 3 to 63, older servers took 255.
MAX_BUCKET_BYTES = 255

FragmentId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{64}\Z")]

_NOTHING = Raw(b"")


class MessageRefused(ValueError):
    """A message breaks the contract; the text says where and why."""


class ResultRefused(MessageRefused):
    """A result breaks the contract, and names at least one fragment that it came of."""

    def __init__(self, reason: str, predecessors: Sequence[str]) -> None:
        super().__init__(reason)
        self.predecessors = tuple(predecessors)


class RemoteFile(Struct):
    """A file of a fragment in the object store: its logical name, and the object that holds it."""

    name: str
    path: str
    bucket: str


class RemoteMetadata(Struct, omit_defaults=True):
    """What a remote fragment says about itself. `predecessors` may arrive as null; it leaves as a list."""

    fragment_id: FragmentId
    predecessors: list[FragmentId] | None = None
    target_queue: str | None = None
    custom: Raw = _NOTHING


class RemoteFragment(Struct):
    """A fragment as it travels on a queue."""

    files: Annotated[list[RemoteFile], Meta(min_length=1)]
    metadata: RemoteMetadata


class LocalFile(Struct):
    """A file on the shared volume: its logical name, and its path as both containers see it."""

    name: str
    path: str


class LocalMetadata(Struct, omit_defaults=True):
    """What the transformation is told about a fragment."""

    fragment_id: str
    predecessors: list[str]
    custom: Raw = _NOTHING


class LocalFragment(Struct, omit_defaults=True):
    """A fragment as it is handed to the transformation.

    `accepts` names the messages beyond the contract that this sidecar understands on the output socket; peers that do not
    know the key ignore it, and a client sends none of them to a sidecar that does not name them.
    """

    files: list[LocalFile]
    metadata: LocalMetadata
    accepts: tuple[str, ...] = ()


class ResultMetadata(Struct):
    """What the transformation says about a result. Its `fragment_id`, if any, is not looked at."""

    predecessors: Annotated[list[FragmentId], Meta(min_length=1)]
    output_channel: str | None = None
    custom: Raw = _NOTHING


class Result(Struct):
    """An output fragment of the transformation."""

    files: Annotated[list[LocalFile], Meta(min_length=1)]
    metadata: ResultMetadata


class Done(Struct):
    """The transformation has finished with the fragment of this ID."""

    fragment_id: str


#: Characters of a reason that are kept: nobody is told more.
LONGEST_REASON = 2000


class Failed(Struct):
    """Beyond the contract: the transformation cannot do this fragment, for this reason, and lives on."""

    fragment_id: FragmentId
    reason: str


#: The most that a step can ask to hold at a time: the largest prefetch of AMQP.
MOST_GATHERED = 65_535


class Gathers(Struct):
    """Beyond the contract: each connection of the transformation wants to hold so many fragments at a time."""

    fragments: Annotated[int, Meta(ge=1)]


class Kill(Struct):
    """A connection of the transformation will send nothing more."""


class _Classified(Struct):
    """The keys by which the messages of a transformation are told apart (contract, section 2).

    All are raw: what is not what it should be can be of any size, and as Python's own lists and dicts takes twenty times as much.
    """

    files: Raw = _NOTHING
    fragment_id: Raw = _NOTHING
    status: Raw = _NOTHING
    failed: Raw = _NOTHING
    gathers: Raw = _NOTHING


class _Blamed(Struct):
    """As much of a refused result as says which fragments it came of."""

    class Metadata(Struct):
        """The predecessors alone, of whatever type they are."""

        predecessors: Raw = _NOTHING

    metadata: Metadata


class _Lineage(Struct):
    """The lineage message of one output fragment."""

    transformation_step: str
    description: Raw


#: RecursionError: a message that is nested deeper than Python's stack.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: Bytes of 64 characters that are all written as two escapes each, in their quotes.
_LONGEST_SHORT_STRING = 64 * 12 + 2
#: Bytes of the list of predecessors of a result that is refused: 15,000 are enough to settle it by. One that names more is not
#: looked through, and a breach.
_LONGEST_BLAME = 1024 * 1024

_encoder = msgspec.json.Encoder()
_remote_decoder = msgspec.json.Decoder(RemoteFragment)
_result_decoder = msgspec.json.Decoder(Result)
_classifier = msgspec.json.Decoder(_Classified)
_blame_decoder = msgspec.json.Decoder(_Blamed)

#: The messages beyond the contract that the sidecar understands.
ACCEPTED = ("failed", "gathers")

#: What tells a connection of the transformation that nothing more will come.
KILL_MESSAGE = b'{"status":"complete"}'


def is_fragment_id(value: object) -> bool:
    """Tell whether `value` is a fragment's ID: a string of 64 characters of `A-Z a-z 0-9 _ -`."""
    try:
        msgspec.convert(value, FragmentId)
    except msgspec.ValidationError:
        return False
    return True


def short_string(value: Raw) -> str | None:
    """Return a string of no more characters than an ID has; None for anything else."""
    text = bytes(value)
    if not text.startswith(b'"') or len(text) > _LONGEST_SHORT_STRING:
        return None
    try:
        return msgspec.json.decode(text, type=str)
    except _UNREADABLE:
        return None


def decode_remote_fragment(body: bytes) -> RemoteFragment:
    """Read a fragment from a queue's message and hold it against the contract's section 3.

    Raises:
        MessageRefused: with the place in the message and the reason.
    """
    try:
        fragment = _remote_decoder.decode(body)
        metadata = fragment.metadata
        metadata.custom = _custom(metadata.custom)
    except _UNREADABLE as error:
        raise MessageRefused(f"not a fragment: {error}") from None
    if metadata.predecessors is None:
        metadata.predecessors = []
    _check_names([file.name for file in fragment.files])
    for number, file in enumerate(fragment.files):
        _check_object(file, f"$.files[{number}]")
    return fragment


def signature_of(fragment: RemoteFragment) -> tuple[tuple[str, str, str], ...]:
    """Return what is equal for two descriptions of one ID if they are of one fragment: its files, in whatever order."""
    return tuple(sorted((file.name, file.bucket, file.path) for file in fragment.files))


def decode_transformation_message(payload: bytes) -> Result | Done | Kill | Failed | Gathers:
    """Read one frame of the transformation's output socket.

    Raises:
        ResultRefused: a result that breaks the contract and names its predecessors.
        MessageRefused: anything else that cannot be read; nobody knows what was lost by it.
    """
    try:
        message = _classifier.decode(payload)
    except _UNREADABLE as error:
        raise MessageRefused(f"not a message: {error}") from None
    files = bytes(message.files)
    if files and files != b"null" and not _is_empty_list(files):
        return _decode_result(payload)
    fragment_id = short_string(message.fragment_id)
    if fragment_id is not None and len(fragment_id) == 64:
        return Done(fragment_id)
    if short_string(message.status) == "complete":
        return Kill()
    for extension, kind in ((message.failed, Failed), (message.gathers, Gathers)):
        if bytes(extension):
            return _decode_extension(extension, kind)
    raise MessageRefused("neither a result, nor a done, nor the kill message")


def encode_message(message: RemoteFragment | LocalFragment) -> bytes:
    """Return the JSON of a message; strings are UTF-8, nothing is escaped without need."""
    return _encoder.encode(message)


def encode_lineage(step: str, description: bytes) -> bytes:
    """Return the lineage message of the fragment whose encoded remote description is given."""
    return _encoder.encode(_Lineage(step, Raw(description)))


def _decode_result(payload: bytes) -> Result:
    try:
        result = _result_decoder.decode(payload)
        result.metadata.custom = _custom(result.metadata.custom)
        _check_names([file.name for file in result.files])
        for number, file in enumerate(result.files):
            if len(file.name.encode()) > MAX_OUTPUT_NAME_BYTES:
                raise MessageRefused(
                    f"an output's name has at most {MAX_OUTPUT_NAME_BYTES} bytes - at `$.files[{number}].name`"
                )
    except (*_UNREADABLE, MessageRefused) as error:
        predecessors = _named_predecessors(payload)
        if not predecessors:
            raise MessageRefused(
                f"a result that names no predecessor to settle it by: {error}"
            ) from None
        raise ResultRefused(f"bad result: {error}", predecessors) from None
    return result


def _decode_extension(value: Raw, kind: type[Failed | Gathers]) -> Failed | Gathers:
    try:
        message = msgspec.json.decode(value, type=kind)
    except _UNREADABLE as error:
        raise MessageRefused(f"not a message: {error}") from None
    if isinstance(message, Failed):
        message.reason = message.reason.strip()[:LONGEST_REASON]
    return message


def _named_predecessors(payload: bytes) -> list[str]:
    try:
        named = bytes(_blame_decoder.decode(payload).metadata.predecessors)
        if not named.startswith(b"[") or len(named) > _LONGEST_BLAME:
            return []
        return [each for each in msgspec.json.decode(named) if is_fragment_id(each)]
    except _UNREADABLE:
        return []


def _is_empty_list(value: bytes) -> bool:
    return value[:1] == b"[" and not value[1:-1].strip()


def _custom(custom: Raw) -> Raw:
    """Keep the user's own metadata byte for byte, which must be UTF-8; `null` is the same as none."""
    value = bytes(custom)
    if value in {b"", b"null"}:
        return _NOTHING
    value.decode()
    return custom


def _check_object(file: RemoteFile, where: str) -> None:
    size = len(file.path.encode())
    if not 0 < size <= MAX_OBJECT_KEY_BYTES:
        raise MessageRefused(
            f"an object key has 1 to {MAX_OBJECT_KEY_BYTES} bytes, this has {size} - at `{where}.path`"
        )
    bucket = file.bucket
    if (
        not 0 < len(bucket.encode()) <= MAX_BUCKET_BYTES
        or "/" in bucket
        or "\0" in bucket
        or bucket in {".", ".."}
    ):
        raise MessageRefused(f"{bucket[:80]!r} cannot be a bucket's name - at `{where}.bucket`")


def _check_names(names: list[str]) -> None:
    """Hold the logical names of a fragment's files against the contract, one by one and together."""
    if len(names) == 1 and _is_plain(names[0]):
        return
    for number, name in enumerate(names):
        problem = None if _is_plain(name) else _name_problem(name)
        if problem:
            raise MessageRefused(f"{problem} - at `$.files[{number}].name`")
    if len(names) > 1:
        _check_names_together(names)


def _check_names_together(names: list[str]) -> None:
    """See that no name is another's, or a directory of another's.

    Sorted with a slash behind each, whatever begins with a name follows it at once; so neighbours tell.
    """
    ordered = sorted(f"{name}/" for name in names)
    for first, second in pairwise(ordered):
        if second.startswith(first):
            pair = first[:-1], second[:-1]
            number = max(number for number, name in enumerate(names) if name in pair)
            raise MessageRefused(
                f"two files are named {pair[0][:80]!r} - at `$.files[{number}].name`"
                if first == second
                else f"{pair[0][:80]!r} is a file and a directory of {pair[1][:80]!r}"
                f" - at `$.files[{number}].name`"
            )


def _is_plain(name: str) -> bool:
    """Tell in one look that most names, short and of one component, are in order."""
    return 0 < len(name) <= 60 and "/" not in name and "\0" not in name and name not in {".", ".."}


def _name_problem(name: str) -> str | None:
    size = len(name.encode())
    if not 0 < size <= MAX_LOCAL_PATH_BYTES:
        return f"a name has 1 to {MAX_LOCAL_PATH_BYTES} bytes, this has {size}"
    if "\0" in name:
        return "a name holds no NUL"
    if name.startswith("/"):
        return f"the name {name[:80]!r} begins with a /, and a name is relative"
    for component in name.split("/"):
        if component in {"", ".", ".."}:
            return f"the name {name[:80]!r} has an empty, `.` or `..` component"
        if len(component.encode()) > MAX_COMPONENT_BYTES:
            return (
                f"a component of the name {name[:80]!r} is longer than {MAX_COMPONENT_BYTES} bytes"
            )
    return None
