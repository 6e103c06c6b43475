"""Secrets in files: as settings at the start, and read again later."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.secret_files import LONGEST_SECRET, SecretUnreadable, read_secret
from iterum_sidecar.secret_source import SecretSource
from iterum_sidecar.settings import Settings, read_settings
from iterum_sidecar.stores.signature import Credentials
from tests.unit.test_settings import REQUIRED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Each secret's variable, the field that it fills, and a value that it may have.
SECRETS = [
    ("MQ_BROKER_URL", "broker_url", "amqp://user:hunter2@rabbit"),
    ("MINIO_ACCESS_KEY", "store_access_key", "hunter2-access"),
    ("MINIO_SECRET_KEY", "store_secret_key", "hunter2-secret"),
    ("SIDECAR_S3_SESSION_TOKEN", "s3_session_token", "hunter2-token"),
]
HUNTER = "hunter2"


def with_file(name: str, path: object) -> dict[str, str]:
    """An environment in which one secret comes from a file."""
    return {key: value for key, value in REQUIRED.items() if key != name} | {
        f"{name}_FILE": str(path)
    }


def only_problem(environment: Mapping[str, str]) -> str:
    with pytest.raises(BadConfiguration) as refusal:
        read_settings(environment)
    (problem,) = refusal.value.problems
    return problem


# -- at the start


@pytest.mark.parametrize(("name", "field", "value"), SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_comes_from_a_file_less_one_newline(
    tmp_path: Path, name: str, field: str, value: str, end: str
) -> None:
    (tmp_path / "secret").write_text(value + end, encoding="utf-8", newline="")
    settings = read_settings(with_file(name, tmp_path / "secret"))
    assert getattr(settings, field) == value
    assert HUNTER not in repr(settings)


@pytest.mark.parametrize(("name", "field", "value"), SECRETS)
def test_both_ways_at_once_are_refused_by_both_names(
    tmp_path: Path, name: str, field: str, value: str
) -> None:
    (tmp_path / "secret").write_text(value, encoding="utf-8")
    problem = only_problem(REQUIRED | {name: value, f"{name}_FILE": str(tmp_path / "secret")})
    assert problem == f"{name} and {name}_FILE are both set: set one of them"


@pytest.mark.parametrize("name", ["MQ_BROKER_URL", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"])
def test_neither_way_is_missing_and_names_both(name: str) -> None:
    problem = only_problem(REQUIRED | {name: ""})
    assert problem.startswith(f"{name} is missing: ")
    assert problem.endswith(f"; or set {name}_FILE to the path of a file with it")


@pytest.mark.parametrize("name", [name for name, _, _ in SECRETS])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hunter2\xff", "holds bytes that are no UTF-8"),
        (b"h" * (LONGEST_SECRET + 1), "is longer than 65536 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error_with_variable_and_path(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    problem = only_problem(with_file(name, path))
    assert problem.startswith(f"{name}_FILE {str(path)!r} {reason}: ")
    assert HUNTER not in problem


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("MQ_BROKER_URL", "http://user:hunter2@rabbit"),
        ("MQ_BROKER_URL", "amqp://user:hunter2@rabbit:x"),
        ("MINIO_ACCESS_KEY", "hunter2\n\n"),
        ("SIDECAR_S3_SESSION_TOKEN", "hunter2\nmore"),
    ],
)
def test_a_content_that_is_wrong_is_told_with_the_files_name_and_never_shown(
    tmp_path: Path, name: str, content: str
) -> None:
    path = tmp_path / "secret"
    path.write_text(content, encoding="utf-8")
    problem = only_problem(with_file(name, path))
    assert problem.startswith(f"{name}_FILE {str(path)!r} is not what it should be")
    assert HUNTER not in problem


@pytest.mark.parametrize(("name", "field", "value"), SECRETS)
def test_a_secret_in_the_place_of_its_path_is_not_shown(name: str, field: str, value: str) -> None:
    problem = only_problem(with_file(name, value))
    assert problem.startswith(f"{name}_FILE cannot be read")
    assert HUNTER not in problem


def test_a_directory_and_a_pipe_are_no_secrets(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SecretUnreadable, match="is empty"):
        read_secret(str(tmp_path / "pipe"))
    with pytest.raises(SecretUnreadable, match="Is a directory"):
        read_secret(str(tmp_path))
    with pytest.raises(SecretUnreadable, match="not a path"):
        read_secret("\0")


def test_the_session_tokens_file_has_the_second_way_in_too(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("the-token", encoding="utf-8")
    config = f'{{"sidecar":{{"s3_session_token_file":"{tmp_path / "token"}"}}}}'
    assert read_settings(REQUIRED | {"ITERUM_CONFIG": config}).s3_session_token == "the-token"
    both = (
        f'{{"sidecar":{{"s3_session_token_file":"{tmp_path / "token"}","s3_session_token":"x"}}}}'
    )
    assert "are both set" in only_problem(REQUIRED | {"ITERUM_CONFIG": both})


# -- later


class Mounted:
    """A secret as Kubernetes mounts it: names that lead through one symlink, which is swapped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.generation = 0

    def swap(self, **secrets: str) -> None:
        self.generation += 1
        fresh = self.directory / f"..{self.generation}"
        fresh.mkdir()
        for name, secret in secrets.items():
            (fresh / name).write_text(secret, encoding="utf-8")
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")
        (self.directory / "..tmp").symlink_to(fresh.name)
        (self.directory / "..tmp").rename(self.directory / "..data")


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    found = Mounted(tmp_path)
    found.swap(access="access-1", secret="secret-1", broker="amqp://user:first@rabbit")
    return found


def source_of(mounted: Mounted) -> SecretSource:
    environment = {
        **REQUIRED,
        "MINIO_ACCESS_KEY": "",
        "MINIO_SECRET_KEY": "",
        "MQ_BROKER_URL": "",
        "MINIO_ACCESS_KEY_FILE": str(mounted.directory / "access"),
        "MINIO_SECRET_KEY_FILE": str(mounted.directory / "secret"),
        "MQ_BROKER_URL_FILE": str(mounted.directory / "broker"),
        "SIDECAR_BROKER_SERVER_NAME": "rabbit.example",
    }
    return SecretSource(read_settings(environment), lambda: read_settings(environment))


def test_a_swap_is_seen_when_it_is_read_again(
    mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "iterum_sidecar")
    source = source_of(mounted)
    assert source.store_credentials() == Credentials("access-1", "secret-1")
    assert source.broker_parameters().password == "first"
    assert caplog.records == []
    mounted.swap(access="access-2", secret="secret-2", broker="amqp://user:second@rabbit")
    assert source.store_credentials() == Credentials("access-2", "secret-2")
    assert source.broker_parameters().password == "second"
    assert source.broker_parameters().server_name == "rabbit.example"
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "other keys for the store have been read",
        "another URL of the broker has been read",
    ]


def test_what_cannot_be_read_any_more_is_told_once_and_kept(
    mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(mounted)
    (mounted.directory / "secret").unlink()
    for _ in range(3):
        assert source.store_credentials() == Credentials("access-1", "secret-1")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    (problem,) = record.__dict__["fields"]["problems"]
    assert problem.startswith("MINIO_SECRET_KEY_FILE")
    (mounted.directory / "secret").write_text("secret-3", encoding="utf-8")
    assert source.store_credentials() == Credentials("access-1", "secret-3")


def test_variables_are_the_same_whenever_they_are_read() -> None:
    reads: list[Settings] = []

    def read() -> Settings:
        reads.append(read_settings(REQUIRED))
        return reads[-1]

    source = SecretSource(read_settings(REQUIRED), read)
    assert source.store_credentials() == Credentials("the-access-key", "the-secret-key")
    assert source.broker_parameters().user == "guest"
    assert len(reads) == 2
