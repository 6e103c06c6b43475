"""The way to the broker, within a time, and what to do where it leads nowhere."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from iterum_sidecar import amqp
from iterum_sidecar.check.findings import Findings, Outcome
from iterum_sidecar.check.reaching import reach
from iterum_sidecar.dead_letters.errors import NotDone
from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.tls import CLIENT_CERTIFICATE_ADVICE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from iterum_sidecar.dead_letters.place import Place

__all__ = ["as_a_loss", "connected", "count_ready", "refuse_to_destroy"]

#: Reply codes of AMQP 0-9-1.
_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_RESOURCE_LOCKED = 405
#: The first RabbitMQ that takes a delivery limit of -1 for none.
_KNOWS_NO_LIMIT = (4,)


@asynccontextmanager
async def connected(place: Place, seconds: float) -> AsyncIterator[amqp.Connection]:
    """Connect for the duration of the context; name, port, TLS together and the login may each take `seconds`.

    Raises:
        ServiceLost: there is no way, or the connection was lost later; what is wrong, and what mends it.
    """
    findings = Findings("broker")
    stream = await reach(place.address, seconds=seconds, findings=findings)
    if stream is None:
        (failed,) = (each for each in findings.all if each.outcome is Outcome.FAILED)
        raise ServiceLost(f"{failed.detail}; {failed.remedy}")

    async def give_stream(*_: object) -> trio.abc.Stream:
        return stream

    parameters = place.parameters
    opened = False
    scope = trio.CancelScope(deadline=trio.current_time() + seconds)
    with scope:
        try:
            async with amqp.open_connection(
                parameters,
                ssl_context=place.address.context,
                connection_name="iterum-sidecar dead-letters",
                stream_factory=give_stream,
            ) as connection:
                scope.deadline, opened = math.inf, True
                yield connection
        except amqp.AccessRefused as error:
            raise ServiceLost(
                f"{place.address} refuses us: {error}; {_login_advice(error, place)}"
            ) from None
        except amqp.ConnectError as error:
            raise ServiceLost(f"{place.address}: {error}{_advice(error, place)}") from None
        except amqp.AmqpError as error:
            raise as_a_loss(error) from None
        except ValueError as error:
            if opened:
                raise
            # A login that no frame can carry.
            raise ServiceLost(
                f"{error}; mend user and password in {place.address.variable}"
            ) from None
    if scope.cancelled_caught:
        raise ServiceLost(
            f"{place.address} takes connections, and gives no answer within {seconds:g} s; see whether the port in"
            f" {place.address.variable} is a broker's, to its log and its load"
        )


def as_a_loss(error: Exception) -> ServiceLost:
    """Return what is said of a connection, or of what was used of it, that ended on the way."""
    if isinstance(error, amqp.ConnectionLost):
        return ServiceLost(f"the broker was lost: {error}")
    return ServiceLost(f"the broker goes on no more: {error}; see to its log")


async def count_ready(connection: amqp.Connection, queue: str) -> int | None:
    """Return how many messages wait in a queue, or None where there is none of this name.

    Raises:
        ServiceLost: it cannot be looked at.
    """
    try:
        async with connection.open_channel() as channel:
            return (await channel.declare_queue(queue, passive=True)).messages
    except ValueError:  # no name that a queue can have
        return None
    except amqp.ChannelClosed as error:
        if error.code == _NOT_FOUND:
            return None
        if error.code == _RESOURCE_LOCKED:
            raise ServiceLost(f"{queue} is another connection's alone; end that program") from None
        if error.code == _ACCESS_REFUSED:
            raise ServiceLost(
                f"{error}; give the user permission to configure, read and write it: rabbitmqctl set_permissions"
            ) from None
        raise as_a_loss(error) from None


async def refuse_to_destroy(connection: amqp.Connection, queue: str) -> None:
    """See that the queue, which is there, gives its messages back when it should.

    A quorum queue with a delivery limit of -1 keeps them for ever from RabbitMQ 4 on. One before that drops each message that
    comes back (3.10.8, seen), so that a look would destroy all. Only a declaration with the same arguments shows it.

    Raises:
        NotDone: it is such a queue.
    """
    properties = connection.server_properties
    if properties.get("product") != "RabbitMQ" or _version(properties) >= _KNOWS_NO_LIMIT:
        return
    try:
        async with connection.open_channel() as channel:
            await channel.declare_queue(
                queue, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": -1}
            )
    except amqp.ChannelClosed:
        return  # it is another kind of queue
    raise NotDone(
        f"{queue} is a quorum queue with x-delivery-limit -1, and RabbitMQ {properties.get('version')} drops each message that"
        " comes back to such a queue: to look would destroy them, so nothing was looked at. Update the broker to RabbitMQ 4"
    )


def _version(properties: Mapping[str, object]) -> tuple[int, ...]:
    """Return the broker's version; an empty one, which is before all others, where it tells none."""
    numbers = str(properties.get("version")).split(".")[:2]
    return tuple(map(int, numbers)) if all(map(str.isdecimal, numbers)) else ()


def _advice(error: amqp.ConnectError, place: Place) -> str:
    if isinstance(error, amqp.EndedAfterTls):
        return CLIENT_CERTIFICATE_ADVICE
    return f"; see whether a broker of AMQP 0-9-1 listens at the port in {place.address.variable}"


def _login_advice(error: amqp.AccessRefused, place: Place) -> str:
    variable = place.address.variable
    if error.code != _ACCESS_REFUSED:
        return f"mend the path of {variable}, which is the virtual host"
    guest = "; from another machine, guest is refused by default" if error.user == "guest" else ""
    return f"mend user and password in {variable} (# and @ are written %23 and %40){guest}"
