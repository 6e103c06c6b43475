"""Which queue of which broker is meant: by the variables of a pod, or by the command line, and by nothing else of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from iterum_sidecar import amqp
from iterum_sidecar.check.findings import Findings
from iterum_sidecar.check.reaching import Address
from iterum_sidecar.check.variables import look_at_variables
from iterum_sidecar.exit_codes import BadConfiguration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iterum_sidecar.check.findings import Finding

__all__ = ["SUFFIX", "Place", "find_place"]

#: What a step's input queue is followed by in the name of its dead-letter queue (`Settings.dead_letter_queue`).
SUFFIX = "-dead-letter"

_BROKER = ("MQ_BROKER_URL", "SIDECAR_BROKER_SERVER_NAME")
_TLS = (
    "ITERUM_CONFIG",
    "SIDECAR_CA_FILE",
    "SIDECAR_CLIENT_CERTIFICATE",
    "SIDECAR_CLIENT_KEY",
    "SIDECAR_TLS_VERIFY",
)


class Place(NamedTuple):
    """A dead-letter queue, the input queue that it belongs to, and the way to their broker."""

    queue: str
    input_queue: str
    parameters: amqp.ConnectionParameters
    address: Address


def find_place(environment: Mapping[str, str], *, queue: str = "", broker_url: str = "") -> Place:
    """Return the place that the variables lead to, with the queue and the broker of the command line where it names any.

    A `queue` whose name ends with `-dead-letter` is taken as it is, any other for an input queue: nobody's input is ever
    taken for dead letters.

    Raises:
        BadConfiguration: a line for each variable that is needed, and missing or wrong.
    """
    variables = dict(environment)
    if broker_url:
        variables.pop("MQ_BROKER_URL_FILE", None)
        variables["MQ_BROKER_URL"] = broker_url
    if queue:
        variables["MQ_INPUT_QUEUE"] = queue.removesuffix(SUFFIX)
    findings = Findings("variables")
    readable = look_at_variables(variables, findings)
    settings = readable.settings
    tls = _TLS if settings.broker_url.startswith("amqps:") else ()
    needed = ("MQ_INPUT_QUEUE", *_BROKER, *tls)
    if readable.lacks(*needed):
        raise BadConfiguration([_problem(each) for each in findings.all if _is_of(each, needed)])
    parameters = amqp.ConnectionParameters.from_url(
        settings.broker_url, server_name=settings.broker_server_name
    )
    address = Address(
        parameters.host,
        parameters.port,
        "--broker" if broker_url else "MQ_BROKER_URL",
        readable.context if parameters.tls else None,
        parameters.server_name,
        "SIDECAR_BROKER_SERVER_NAME",
    )
    return Place(settings.dead_letter_queue, settings.input_queue, parameters, address)


def _is_of(finding: Finding, names: tuple[str, ...]) -> bool:
    return finding.subject in names or finding.subject.removesuffix("_FILE") in names


def _problem(finding: Finding) -> str:
    other = {"MQ_INPUT_QUEUE": ", or give --queue", "MQ_BROKER_URL": ", or give --broker"}
    remedy = f"{finding.remedy}{other.get(finding.subject, '')}" if finding.remedy else ""
    return ": ".join(text for text in (f"{finding.subject} {finding.detail}", remedy) if text)
