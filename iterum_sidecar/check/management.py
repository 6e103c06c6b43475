"""The broker as its management interface tells of it: what AMQP has no question for.

It tells neither the broker's own `consumer_timeout` nor its `max_message_size` (seen on 3.10.8 and 4.3.6), so those are the
defaults of its version, and said to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx2
import msgspec
import trio

from iterum_sidecar.amqp import ConnectionParameters
from iterum_sidecar.check.broker import DECLARE_ANEW, queues_by_role
from iterum_sidecar.tls import has_tls_settings, tls_advice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from iterum_sidecar.check.findings import Findings
    from iterum_sidecar.check.variables import Readable

__all__ = ["look_at_management"]

#: What nobody else tells, each a line of its own.
SUBJECTS = ("alarms", "transient queues", "consumer timeout", "message size", "queue types")

_OTHER_SERVER = "see whether --management-url leads to RabbitMQ's management interface"

_MIB = 1024 * 1024


class Unanswered(Exception):
    """A question that the interface did not answer as it should; the message says why, and `remedy` what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class NotAllowed(Unanswered):
    """A question that this user may not ask."""


async def look_at_management(
    readable: Readable, url: str, *, seconds: float, findings: Findings
) -> None:
    """Add what the interface at `url` tells, within `seconds` in all; an empty `url` is one that was not given."""
    if not url:
        _add_unknown(
            findings,
            "only the broker's management interface tells",
            "--management-url http://user:password@host:15672",
        )
        return
    if reason := readable.lacks("MQ_BROKER_URL"):
        _add_unknown(findings, reason)
        return
    began = len(findings.all)
    try:
        with trio.fail_after(seconds):
            async with _client(readable, url, seconds) as client:
                await _Looks(readable, client, findings).take()
    except trio.TooSlowError:
        failure = Unanswered(
            f"no answer within {seconds:g} s", "see to host and port in --management-url"
        )
    except Unanswered as error:
        failure = error
    else:
        return
    told = {finding.subject for finding in findings.all[began:]}
    findings.failed("management", f"{_without_user(url)}: {failure}", failure.remedy)
    for subject in SUBJECTS:
        if subject not in told:
            findings.unknown(subject, "the broker's management interface does not tell")


def _add_unknown(findings: Findings, reason: str, remedy: str = "") -> None:
    for subject in SUBJECTS:
        findings.unknown(subject, reason, remedy if subject == SUBJECTS[-1] else "")


def _client(readable: Readable, url: str, seconds: float) -> httpx2.AsyncClient:
    settings = readable.settings
    # No proxy, as everywhere but on the way to the manager.
    return httpx2.AsyncClient(
        base_url=url.rstrip("/") + "/api/",
        timeout=seconds,
        verify=readable.context if has_tls_settings(settings) and readable.context else True,
        trust_env=False,
    )


class _Looks:
    """The looks at one broker over its management interface."""

    def __init__(self, readable: Readable, client: httpx2.AsyncClient, findings: Findings) -> None:
        self._readable = readable
        self._client = client
        self._findings = findings
        parameters = ConnectionParameters.from_url(readable.settings.broker_url)
        self._vhost = quote(parameters.vhost, safe="")
        self._version: tuple[int, ...] = ()

    async def take(self) -> None:
        """Look at everything; raises Unanswered at the first question that is not answered."""
        try:
            overview = await self._get("overview", dict[str, Any])
        except NotAllowed as error:
            raise Unanswered(str(error), "mend user and password in --management-url") from None
        version = str((overview or {}).get("rabbitmq_version", ""))
        if not version:
            raise Unanswered("/api/overview tells no version", _OTHER_SERVER)
        self._version = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        self._findings.ok("management", f"RabbitMQ {version} answers")
        await self._where_allowed(self._look_at_alarms, "monitoring", "alarms")
        await self._where_allowed(
            self._look_at_transient_queues, "administrator", "transient queues"
        )
        self._look_at_message_size()
        await self._where_allowed(
            self._look_at_queues, "management", "consumer timeout", "queue types"
        )

    async def _where_allowed(
        self, look: Callable[[], Awaitable[None]], tag: str, *subjects: str
    ) -> None:
        """Look; where the user may not, what was to be looked at is unknown."""
        try:
            await look()
        except NotAllowed as error:
            for subject in subjects:
                self._findings.unknown(
                    subject,
                    str(error),
                    f"give the user of --management-url the tag {tag}, and access to the virtual host",
                )

    async def _get(self, path: str, kind: type[Any]) -> Any:  # noqa: ANN401 - as many types as questions
        """Return the answer to a question, or None for 404."""
        try:
            response = await self._client.get(path)
        except httpx2.HTTPError as error:
            advice = tls_advice(error, "another host in --management-url").removeprefix("; ")
            raise Unanswered(
                str(error) or type(error).__name__,
                advice or "see to host and port in --management-url",
            ) from None
        if response.status_code == 404:
            return None
        if response.status_code in {401, 403}:
            raise NotAllowed(f"/api/{path} answers {response.status_code}: refused", "")
        try:
            if response.status_code != 200:
                raise ValueError(f"/api/{path} answers {response.status_code}")
            return msgspec.json.decode(response.content, type=kind)
        except (ValueError, RecursionError) as error:
            raise Unanswered(str(error), _OTHER_SERVER) from None

    async def _look_at_alarms(self) -> None:
        nodes = await self._get("nodes", list[dict[str, Any]]) or []
        alarmed = sorted(
            f"{node.get('name')} is short of {what}"
            for node in nodes
            for alarm, what in (("mem_alarm", "memory"), ("disk_free_alarm", "disk"))
            if node.get(alarm) is True
        )
        if alarmed:
            self._findings.failed(
                "alarms",
                f"{', '.join(alarmed)}: it takes no messages from anybody",
                "give it more, or let queues be emptied",
            )
        else:
            self._findings.ok("alarms", "none")

    async def _look_at_transient_queues(self) -> None:
        features = await self._get("deprecated-features", list[dict[str, Any]]) or []
        states = {feature.get("name"): feature.get("state") for feature in features}
        state = states.get("transient_nonexcl_queues", "permitted")
        settings = self._readable.settings
        if state == "permitted":
            self._findings.ok("transient queues", "are permitted")
        elif settings.queue_durable or settings.queue_type == "quorum":
            self._findings.ok(
                "transient queues", f"are {state}; those that are declared here are durable"
            )
        else:
            self._findings.warning(
                "transient queues",
                f"are {state}: `run` declares durable ones, and programs that declare transient ones are cut off",
                "set SIDECAR_QUEUE_DURABLE=true; for Iterum's other programs, on the broker:"
                " deprecated_features.permit.transient_nonexcl_queues = true",
            )

    def _look_at_message_size(self) -> None:
        most = (16 if self._version >= (4,) else 128) * _MIB
        frame = self._readable.settings.frame_limit
        detail = f"up to {most // _MIB} MiB, unless the broker's max_message_size says otherwise"
        if frame > most:
            self._findings.warning(
                "message size",
                f"{detail}; SIDECAR_FRAME_LIMIT lets results through of {frame / _MIB:.0f} MiB",
                f"set SIDECAR_FRAME_LIMIT to {most} or less, or max_message_size on the broker to {frame} or more",
            )
        else:
            self._findings.ok("message size", detail)

    async def _look_at_queues(self) -> None:
        role = "input queue"
        found: dict[str, Any] | None = None
        for each, queue in queues_by_role(self._readable).items():
            state = await self._get(f"queues/{self._vhost}/{quote(queue, safe='')}", dict[str, Any])
            if state is not None:
                self._look_at_queue(each, queue, state)
            if each == role:
                found = state
        self._look_at_consumer_timeout(found)

    def _look_at_queue(self, role: str, queue: str, state: dict[str, Any]) -> None:
        findings = self._findings
        subject = f"{role}'s type"
        kind = str(state.get("type", "classic"))
        detail = f"{queue}: {kind}, {'durable' if state.get('durable') else 'transient'}"
        arguments = _dictionary(state, "arguments")
        if others := sorted(
            f"{name}={value}" for name, value in arguments.items() if name != "x-queue-type"
        ):
            detail += f", {', '.join(others)}"
        policy = _dictionary(state, "effective_policy_definition")
        limit = self._delivery_limit(state, arguments, policy) if kind == "quorum" else None
        if limit is None:
            findings.ok(subject, detail)
            return
        exchange = "x-dead-letter-exchange" in arguments or "dead-letter-exchange" in policy
        fate = "goes to its dead-letter exchange, and not to ours" if exchange else "is dropped"
        remedy = self._remedy_of_limit(arguments)
        if limit > 0:
            findings.warning(
                subject,
                f"{detail}; a message that comes back more than {limit} times {fate}",
                remedy,
            )
            return
        why = ": RabbitMQ before 4 takes a limit below 0 so" if limit < 0 else ""
        findings.failed(subject, f"{detail}; each message that comes back {fate}{why}", remedy)

    def _delivery_limit(
        self, state: dict[str, Any], arguments: dict[str, Any], policy: dict[str, Any]
    ) -> int | None:
        """Return how often a message may come back to a quorum queue before that lets go of it; None where for ever.

        RabbitMQ before 4 has no limit of its own; given two it takes the lower one, and one below 0 as it takes 0 (3.10.8, seen). From 4
        on one below 0 is none, and of two the other one counts then (4.3.6, seen). The queue's own word comes first there, and is not in an
        answer to a question soon after its declaration.
        """
        both = (arguments.get("x-delivery-limit"), policy.get("delivery-limit"))
        given = [number for number in both if isinstance(number, int)]
        if self._version < (4,):
            return min(given, default=None)
        limit = state.get("delivery_limit")
        if limit is None:
            lowest = min(given, default=20)
            limit = lowest if lowest >= 0 else max(given)
        return limit if isinstance(limit, int) and limit >= 0 else None

    def _remedy_of_limit(self, arguments: dict[str, Any]) -> str:
        if "x-delivery-limit" in arguments:
            return DECLARE_ANEW
        if self._version < (4,):
            return "take delivery-limit out of its policy (rabbitmqctl list_policies, list_operator_policies)"
        return "set delivery-limit to -1 in a policy for it (rabbitmqctl set_policy)"

    def _look_at_consumer_timeout(self, state: dict[str, Any] | None) -> None:
        """Hold the time that a message may be in work against the time that the settings give the transformation."""
        findings = self._findings
        settings = self._readable.settings
        state = state or {}
        kind = state.get("type", settings.queue_type)
        given = (
            _dictionary(state, "arguments").get("x-consumer-timeout"),
            _dictionary(state, "effective_policy_definition").get("consumer-timeout"),
        )
        milliseconds = min((each for each in given if isinstance(each, int)), default=None)
        if self._version >= (4, 3) and kind == "classic":
            findings.ok("consumer timeout", "classic queues have none since RabbitMQ 4.3")
            return
        if milliseconds is None:
            seconds, whence = 1800.0, "unless the broker's consumer_timeout says otherwise"
        else:
            seconds, whence = milliseconds / 1000, "as its arguments or its policy say"
        detail = f"a fragment may be in work for {seconds:.0f} s, {whence}; after that it is delivered again"
        if seconds <= settings.kill_timeout:
            findings.warning(
                "consumer timeout",
                f"{detail}. SIDECAR_KILL_TIMEOUT gives the transformation {settings.kill_timeout:g} s for what it holds",
                "raise the queue's consumer timeout, or lower SIDECAR_KILL_TIMEOUT",
            )
        else:
            findings.ok("consumer timeout", detail)


def _dictionary(state: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part of an answer that is an object; RabbitMQ writes an empty one as a list at times."""
    value = state.get(name)
    return value if isinstance(value, dict) else {}


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
