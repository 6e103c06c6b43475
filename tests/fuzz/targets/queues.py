"""What comes on the input queue, and what an operator says in ITERUM_CONFIG."""

from __future__ import annotations

import json
import posixpath

from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.messages import (
    LocalFragment,
    LocalMetadata,
    MessageRefused,
    decode_remote_fragment,
    encode_lineage,
    encode_message,
)
from iterum_sidecar.settings import Settings, read_settings
from tests.fuzz.targets.rules import check_custom, check_names, is_id
from tests.fuzz.targets.sockets import ID, JSON_WORDS
from tests.fuzz.targets.target import Target

__all__ = ["TARGETS"]

ENVIRONMENT = {
    "DATA_VOLUME_PATH": "/data-volume",
    "TRANSFORMATION_STEP_INPUT": "in.sock",
    "TRANSFORMATION_STEP_OUTPUT": "out.sock",
    "ITERUM_NAME": "hash-step",
    "PIPELINE_HASH": "hash",
    "ITERUM_CONFIG_PATH": "config",
    "MQ_BROKER_URL": "amqp://guest:guest@nowhere",
    "MQ_INPUT_QUEUE": "in",
    "MQ_OUTPUT_QUEUE": "out",
    "MINIO_URL": "nowhere:9000",
    "MINIO_ACCESS_KEY": "key",
    "MINIO_SECRET_KEY": "secret",
    "MINIO_OUTPUT_BUCKET": "results",
}


def read_remote_fragment(data: bytes) -> None:
    """A message is refused, or a fragment that obeys every rule and can be told to everybody who comes after."""
    try:
        fragment = decode_remote_fragment(data)
    except MessageRefused:
        return
    metadata = fragment.metadata
    assert is_id(metadata.fragment_id)
    assert metadata.predecessors is not None
    assert all(map(is_id, metadata.predecessors))
    check_names([file.name for file in fragment.files])
    for file in fragment.files:
        assert 0 < len(file.path.encode()) <= 1024
        assert posixpath.basename(file.bucket) == file.bucket not in {"", ".", ".."}
        assert "\0" not in file.bucket
    check_custom(bytes(metadata.custom))
    encoded = encode_message(fragment)
    assert decode_remote_fragment(encoded) == fragment
    assert json.loads(encode_lineage("step", encoded))["description"]["files"]
    local = LocalFragment([], LocalMetadata(metadata.fragment_id, [], metadata.custom))
    assert json.loads(encode_message(local))["metadata"]["fragment_id"] == metadata.fragment_id


def read_config(data: bytes) -> None:
    """ITERUM_CONFIG is refused with a line that names it, or leads nowhere but where it may."""
    # As os.environ has it. No variable holds a NUL (execve(2)).
    text = data.replace(b"\0", b"").decode(errors="surrogateescape")
    try:
        settings = read_settings(ENVIRONMENT | {"ITERUM_CONFIG": text})
    except BadConfiguration as error:
        problems = error.problems
    else:
        check_settings(settings)
        return
    assert problems
    for problem in problems:
        assert "ITERUM_CONFIG" in problem or "SIDECAR_" in problem
        assert len(problem) < 1000
        problem.encode()


def check_settings(settings: Settings) -> None:
    """Hold what came of ITERUM_CONFIG against what queues, paths and numbers may be."""
    for queue in settings.queue_mapping.values():
        assert 0 < len(queue.encode()) <= 255
    for file in settings.config_files.values():
        below = posixpath.normpath(f"/config/{file}")
        assert below.startswith("/config/")
        assert "\0" not in file
        assert len(posixpath.basename(below).encode()) <= 255
    assert 1 <= settings.attempts <= 1000
    for text in (settings.s3_region, settings.ca_file, *settings.queue_mapping):
        text.encode()


def _remote(metadata: dict[str, object] | None = None, **file: str) -> bytes:
    described = {"name": "cat.jpg", "path": "iterum_data/cat.jpg", "bucket": "data"} | file
    told = {"fragment_id": ID, "predecessors": ["b" * 64]} | (metadata or {})
    return json.dumps({"files": [described], "metadata": told}).encode()


_REMOTE = (
    _remote(),
    _remote({"predecessors": None, "target_queue": "q", "custom": {"a": [1e3, None, "é"]}}),
    _remote(name="a/b/c", path="x" * 1024, bucket="b" * 255),
    _remote(name="../up"),
    _remote(name="a\0b"),
    _remote(bucket="../x"),
    _remote({"fragment_id": "short"}),
    _remote({"custom": "CUSTOM"}).replace(b'"CUSTOM"', b"[" * 2000),
    json.dumps(
        {
            "files": [{"name": name, "path": "p", "bucket": "b"} for name in ("a", "a/b", "a")],
            "metadata": {"fragment_id": ID},
        }
    ).encode(),
    b'{"files":[],"metadata":{}}',
    b"not JSON",
    b"",
)
_CONFIG = (
    b"",
    b"{}",
    b'{"queue_mapping":{"errors":"hash-errors"},"config_files":{"model":"deep/model.bin"},"mine":[1]}',
    b'{"queue_mapping":null,"config_files":null,"sidecar":{}}',
    b'{"config_files":{"a":"../../etc/passwd"}}',
    b'{"config_files":{"a":"x","b":"x/y"}}',
    b'{"sidecar":{"attempts":5,"kill_on_error":false,"drain_seconds":1.5,"s3_region":"eu","lineage":"off"}}',
    b'{"sidecar":{"attemps":5,"frame_limit":1e999,"http_address":[":1"]}}',
    b'{"sidecar":{"attempts":' + b"1" * 400 + b"}}",
    b'{"queue_mapping":{"a":"' + b"q" * 256 + b'"}}',
    b'{"sidecar":{"s3_session_token_file":"/nowhere","tracing":"otlp"}}',
)

_FRAGMENT_WORDS = (
    b'"files"', b'"name"', b'"path"', b'"bucket"', b'"metadata"', b'"fragment_id"', b'"predecessors"', b'"target_queue"',
    b'"custom"',
)  # fmt: skip
_CONFIG_WORDS = (
    b'"queue_mapping"', b'"config_files"', b'"sidecar"', b'"attempts"', b'"drain_seconds"', b'"frame_limit"',
    b'"http_address"', b'"ca_file"', b'"s3_region"', b'"log_level"', b'"tracing"', b'"[::1]:80"',
)  # fmt: skip

TARGETS = (
    Target(
        "remote-fragment",
        read_remote_fragment,
        _REMOTE,
        _FRAGMENT_WORDS + JSON_WORDS,
        says_json=True,
    ),
    Target("config", read_config, _CONFIG, _CONFIG_WORDS + JSON_WORDS, says_json=True),
)
