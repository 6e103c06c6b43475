"""The broker as any client sees it: the way there, the login, the version, and each queue as it is.

Nothing is declared: a passive declaration only looks (AMQP 0-9-1, `queue.declare`), and the one that compares arguments
has one among them with which no such queue can be made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from iterum_sidecar import amqp
from iterum_sidecar.check.reaching import Address, reach

if TYPE_CHECKING:
    from iterum_sidecar.check.findings import Findings
    from iterum_sidecar.check.variables import Readable
    from iterum_sidecar.settings import Settings

__all__ = ["DECLARE_ANEW", "LIMIT_TO_COMPARE", "look_at_broker", "queues_by_role"]

#: What mends a limit that is among a queue's own arguments (a policy beside it changed nothing on 3.10.8 and 4.3.6).
DECLARE_ANEW: Final = (
    "no policy lifts what a queue was declared with: when it is empty, delete it (rabbitmqctl delete_queue),"
    " and let `run` declare it"
)

#: Reply codes of AMQP 0-9-1.
_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_RESOURCE_LOCKED = 405

#: From this version of RabbitMQ on, a delivery limit of -1 is none; before, each message that comes back is dropped.
_KNOWS_NO_LIMIT: Final = 4
#: Passes at a quorum queue that was declared with this limit and nothing else, and is refused at any other. Where there is no queue it is
#: refused too: no quorum queue can have priorities so, and whether one that is there has them is not compared (3.10.8, seen).
LIMIT_TO_COMPARE: Final[dict[str, Any]] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": -1,
    "x-max-priority": 1,
}

_USES = ("MQ_BROKER_URL", "SIDECAR_BROKER_SERVER_NAME")
_USES_FOR_TLS = (
    "SIDECAR_CA_FILE",
    "SIDECAR_CLIENT_CERTIFICATE",
    "SIDECAR_CLIENT_KEY",
    "SIDECAR_TLS_VERIFY",
)


def queues_by_role(readable: Readable) -> dict[str, str]:
    """Return the queues that this step uses, by what each is for, less those whose names are wrong."""
    settings = readable.settings
    roles: dict[str, str] = {}
    if not readable.lacks("MQ_INPUT_QUEUE"):
        roles["input queue"] = settings.input_queue
        roles["dead-letter queue"] = settings.dead_letter_queue
    if not readable.lacks("MQ_OUTPUT_QUEUE"):
        roles["output queue"] = settings.output_queue
    roles |= {
        f"queue of channel {channel}": queue for channel, queue in settings.queue_mapping.items()
    }
    if settings.lineage and not readable.lacks("PIPELINE_HASH", "SIDECAR_LINEAGE"):
        roles["lineage queue"] = settings.lineage_queue
    return roles


async def look_at_broker(readable: Readable, *, seconds: float, findings: Findings) -> None:
    """Add what there is to say of the broker; each look may take `seconds`."""
    settings = readable.settings
    needed = _USES + (_USES_FOR_TLS if settings.broker_url.startswith("amqps:") else ())
    if reason := readable.lacks(*needed):
        findings.unknown("broker", reason)
        return
    parameters = amqp.ConnectionParameters.from_url(
        settings.broker_url, server_name=settings.broker_server_name
    )
    address = Address(
        parameters.host,
        parameters.port,
        "MQ_BROKER_URL",
        readable.context if parameters.tls else None,
        parameters.server_name,
        "SIDECAR_BROKER_SERVER_NAME",
    )
    stream = await reach(address, seconds=seconds, findings=findings)
    looked = False
    if stream is not None:
        looked = await _Looks(readable, parameters, stream, seconds, findings).take()
    if not looked:
        findings.unknown("queues", "not looked at, as nobody has logged in")


class _Looks:
    """The looks at a broker over a connection that has come to be. `_subject` is what is being looked at."""

    def __init__(
        self,
        readable: Readable,
        parameters: amqp.ConnectionParameters,
        stream: trio.abc.Stream,
        seconds: float,
        findings: Findings,
    ) -> None:
        self._readable = readable
        self._parameters = parameters
        self._stream = stream
        self._seconds = seconds
        self._findings = findings
        self._subject = "login"
        self._scope = trio.CancelScope()
        self._logged_in = False

    async def take(self) -> bool:
        """Log in and look at the queues; return whether that was let in."""
        self._begin("login")
        with self._scope:
            try:
                await self._log_in()
            except amqp.AccessRefused as error:
                self._refused(error)
            except (amqp.AmqpError, ValueError) as error:
                # A ValueError is a login that no frame can carry.
                self._findings.failed(self._subject, str(error), self._remedy())
        if self._scope.cancelled_caught:
            self._findings.failed(
                self._subject,
                f"no answer within {self._seconds:g} s",
                "see whether the port in MQ_BROKER_URL is a broker's, to its log and its load",
            )
        return self._logged_in

    def _begin(self, subject: str) -> None:
        self._subject = subject
        self._scope.deadline = trio.current_time() + self._seconds

    def _remedy(self) -> str:
        if self._subject == "login":
            return "see whether a broker of AMQP 0-9-1 listens there, and at which port: mostly 5672, and 5671 for amqps://"
        return "see to the broker's log"

    async def _log_in(self) -> None:
        parameters = self._parameters
        async with amqp.open_connection(
            parameters,
            ssl_context=self._readable.context if parameters.tls else None,
            connection_name="iterum-sidecar check",
            stream_factory=self._give_stream,
        ) as connection:
            self._logged_in = True
            self._findings.ok("login", f"user {parameters.user}, virtual host {parameters.vhost}")
            properties = connection.server_properties
            product, version = (properties.get(key, "unknown") for key in ("product", "version"))
            self._findings.ok("version", f"{product} {version}")
            for role, queue in queues_by_role(self._readable).items():
                self._begin(role)
                await self._look_at_queue(connection, role, queue)

    async def _give_stream(self, *_: object) -> trio.abc.Stream:
        return self._stream

    async def _look_at_queue(self, connection: amqp.Connection, role: str, queue: str) -> None:
        findings = self._findings
        try:
            async with connection.open_channel() as channel:
                found = await channel.declare_queue(queue, passive=True)
        except amqp.ChannelClosed as error:
            if error.code == _NOT_FOUND:
                findings.ok(
                    role, f"{queue} is not there; {_when_missing(role, self._readable.settings)}"
                )
            elif error.code == _RESOURCE_LOCKED:
                findings.failed(
                    role,
                    f"{queue} is another connection's alone",
                    "end that program, or delete the queue: no other can use it",
                )
            else:
                findings.failed(role, f"{queue}: {error}", "see to the broker's log")
            return
        detail = f"{queue}: {found.messages} messages ready, {_consumers(found.consumers)}"
        if await _drops_what_comes_back(connection, queue):
            findings.failed(
                role,
                f"{detail}; it is a quorum queue with x-delivery-limit=-1, by which this broker drops each message that comes back:"
                " RabbitMQ before 4 takes a limit below 0 so",
                DECLARE_ANEW,
            )
            return
        if role == "dead-letter queue" and found.messages:
            findings.warning(
                role,
                detail,
                "fragments have failed: docs/operating.md, 'Dead letters', says what to do with them",
            )
        else:
            findings.ok(role, detail)

    def _refused(self, error: amqp.AccessRefused) -> None:
        user, vhost = error.user, error.vhost
        if error.code == _ACCESS_REFUSED:
            guest = "; from another machine, guest is refused by default" if user == "guest" else ""
            self._findings.failed(
                "login",
                str(error),
                f"mend user and password in MQ_BROKER_URL (# and @ are written %23 and %40){guest}",
            )
            return
        self._findings.ok("login", f"user {user}")
        self._findings.failed(
            "virtual host",
            str(error),
            f"mend the path of MQ_BROKER_URL; or on the broker: rabbitmqctl add_vhost '{vhost}', and"
            f" rabbitmqctl set_permissions -p '{vhost}' {user} '.*' '.*' '.*'",
        )


async def _drops_what_comes_back(connection: amqp.Connection, queue: str) -> bool:
    """Tell whether a queue that is there has the limit that means the contrary before RabbitMQ 4.

    One with further arguments, or with another such limit, is not recognised; the management interface tells of those.
    """
    properties = connection.server_properties
    major = str(properties.get("version")).partition(".")[0]
    if properties.get("product") != "RabbitMQ" or not major.isdecimal():
        return False
    if int(major) >= _KNOWS_NO_LIMIT:
        return False
    try:
        async with connection.open_channel() as channel:
            await channel.declare_queue(queue, durable=True, arguments=LIMIT_TO_COMPARE)
    except amqp.ChannelClosed:
        return False
    return True


def _when_missing(role: str, settings: Settings) -> str:
    if role == "dead-letter queue":
        return "it is declared, durable, with the first dead letter"
    if settings.queue_type == "quorum":
        return "`run` declares a quorum queue that drops nothing for having been delivered often"
    if settings.queue_durable:
        return "`run` declares it durable"
    return "`run` declares it, transient where the broker permits that, else durable"


def _consumers(count: int) -> str:
    return f"{count} consumer{'' if count == 1 else 's'}"
