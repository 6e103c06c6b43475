from __future__ import annotations

import pytest

from iterum_sidecar.amqp import ConnectionParameters


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://", ConnectionParameters()),
        ("amqp:///v", ConnectionParameters(vhost="v")),
        ("amqp://host", ConnectionParameters(host="host")),
        ("amqp://host/", ConnectionParameters(host="host")),
        ("amqp://host/%2F", ConnectionParameters(host="host")),
        ("amqp://host/a%2fb", ConnectionParameters(host="host", vhost="a/b")),
        ("amqp://host/a/b", ConnectionParameters(host="host", vhost="a/b")),
        ("amqps://host", ConnectionParameters(host="host", port=5671, tls=True)),
        ("amqps://host:1", ConnectionParameters(host="host", port=1, tls=True)),
        ("amqp://[::1]:5", ConnectionParameters(host="::1", port=5)),
        ("amqp://user@host", ConnectionParameters(host="host", user="user")),
        ("amqp://u:@host", ConnectionParameters(host="host", user="u", password="")),
        (
            "amqp://a%40b:p%3A%2F%23w@host:99/v?heartbeat=3",
            ConnectionParameters(host="host", port=99, user="a@b", password="p:/#w", vhost="v"),
        ),
    ],
)
def test_urls(url: str, expected: ConnectionParameters) -> None:
    assert ConnectionParameters.from_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "secret",
        "http://user:secret@host",
        "amqp:user:secret@host",
        "amqp://user:sec/secret@host",
        "amqp://user:1#secret@host",
        "amqp://user:secret@host:99999",
        "amqp://user:secret@host:0",
        "amqp://user:secret@[host",
    ],
)
def test_what_is_no_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match="not an AMQP URL") as caught:
        ConnectionParameters.from_url(url)
    assert "sec" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_password_is_not_in_repr() -> None:
    parameters = ConnectionParameters.from_url("amqp://user:secret@host")
    assert "secret" not in repr(parameters)
    assert "user" in repr(parameters)
