"""The variables: what is wrong with them, and what can be looked at although some are wrong.

Settings are read whole or not at all (`settings.py`). So each variable is tried alone, with right values in the place of all
others; the wrong ones are then replaced, and the other areas told of them by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.settings import read_settings
from iterum_sidecar.tls import ssl_context_of, tls_warnings
from iterum_sidecar.variables import CONTRACT, EXTENSIONS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping

    from iterum_sidecar.check.findings import Findings
    from iterum_sidecar.settings import Settings

__all__ = ["Readable", "look_at_variables"]

#: What stands in for a required variable that is missing or wrong. Nothing is ever looked at by one of these.
_RIGHT = {
    "DATA_VOLUME_PATH": "/",
    "TRANSFORMATION_STEP_INPUT": "in.sock",
    "TRANSFORMATION_STEP_OUTPUT": "out.sock",
    "ITERUM_NAME": "name",
    "PIPELINE_HASH": "hash",
    "ITERUM_CONFIG_PATH": "config",
    "MQ_BROKER_URL": "amqp://localhost",
    "MQ_INPUT_QUEUE": "input",
    "MQ_OUTPUT_QUEUE": "output",
    "MINIO_URL": "localhost",
    "MINIO_ACCESS_KEY": "access",
    "MINIO_SECRET_KEY": "secret",
    "MINIO_OUTPUT_BUCKET": "bucket",
}

_VARIABLES = {variable.name: variable for variable in (*CONTRACT, *EXTENSIONS)}

_SOCKETS = ("TRANSFORMATION_STEP_INPUT", "TRANSFORMATION_STEP_OUTPUT")
_CERTIFICATE = ("SIDECAR_CLIENT_CERTIFICATE", "SIDECAR_CLIENT_KEY")

#: Variables that are held against each other: those that are needed to see it, and those that are wrong if it does not fit.
_TOGETHER = (
    (("DATA_VOLUME_PATH", *_SOCKETS), _SOCKETS),
    (_CERTIFICATE, _CERTIFICATE),
)

#: Where a default is right for most, and has a price that one should know.
_DEFAULTS_OF_NOTE = {
    "MQ_PREFETCH_COUNT": "the window is found by itself",
    "SIDECAR_VOLUME_BUDGET": "half of what is free on the volume at the start is for input files, and the rest for results",
    "SIDECAR_DRAIN_SECONDS": "terminationGracePeriodSeconds must be five seconds longer, and no fragment take longer",
    "SIDECAR_SERVICE_TIMEOUT": "`run` waits for broker and store for ever, and tells so once a minute",
    "SIDECAR_QUEUE_DURABLE": "queues that are declared here are lost with all in them when the broker restarts",
}


class Readable(NamedTuple):
    """As much of the settings as can be used: what `wrong` names has a value in `settings` that means nothing."""

    settings: Settings
    context: ssl.SSLContext | None
    wrong: frozenset[str]

    def lacks(self, *names: str) -> str:
        """Return which of these variables are wrong, as a reason not to look; empty where none is."""
        lacking = [name for name in names if name in self.wrong]
        verb = "is" if len(lacking) == 1 else "are"
        return f"not looked at: {', '.join(lacking)} {verb} missing or wrong" if lacking else ""


def look_at_variables(environment: Mapping[str, str], findings: Findings) -> Readable:
    """Add a finding for each variable that is wrong, and return what can be read of the others."""
    try:
        settings, wrong = read_settings(environment), frozenset[str]()
    except BadConfiguration as error:
        _add_problems(error, findings)
        settings, wrong = _read_what_is_right(environment)
    else:
        number = sum(bool(environment.get(name)) for name in _VARIABLES)
        findings.ok("variables", f"{number} are set, and each is what it should be")
    try:
        context = ssl_context_of(settings)
    except BadConfiguration as error:
        _add_problems(error, findings)
        context = None
        wrong |= {"SIDECAR_CA_FILE", *_CERTIFICATE}
    if not wrong:
        _add_notes(environment, settings, findings)
    return Readable(settings, context, wrong)


def _add_problems(error: BadConfiguration, findings: Findings) -> None:
    for problem in error.problems:
        name, _, rest = problem.partition(" ")
        name = name.removesuffix(":")
        variable = _VARIABLES.get(_owner(name))
        detail, found, remedy = rest.partition(f": {variable.expected}" if variable else ": ")
        if variable and found:
            kind = "" if name == variable.name else "the path of a file that holds "
            remedy = f"set it to {kind}{variable.expected}{remedy}"
        elif variable:
            detail, _, remedy = rest.partition(": ")
        findings.failed(name, detail, remedy or "docs/operating.md explains every variable")


def _add_notes(environment: Mapping[str, str], settings: Settings, findings: Findings) -> None:
    for warning in tls_warnings(settings):
        name, _, rest = warning.partition(" ")
        findings.warning(name, rest, "")
    for name, price in _DEFAULTS_OF_NOTE.items():
        variable = _VARIABLES[name]
        (field,) = variable.fields
        if not environment.get(name) and getattr(settings, field) == variable.read(
            variable.default or ""
        ):
            so = f", so {variable.default}" if variable.default else ""
            findings.ok(name, f"not set{so}: {price}")


def _read_what_is_right(environment: Mapping[str, str]) -> tuple[Settings, frozenset[str]]:
    given = _only(_VARIABLES, environment)
    wrong = {
        name
        for name, variable in _VARIABLES.items()
        # A key is never right alone, and its certificate is.
        if name != "SIDECAR_CLIENT_KEY" and not _reads(given, name, variable.file)
    }
    for needed, blamed in _TOGETHER:
        if wrong.isdisjoint(needed) and not _reads(given, *needed):
            wrong.update(blamed)
    if not _reads(given, *_right_names(given, wrong)):
        # What is left comes of keys in it that do not go together with other variables.
        wrong.add("ITERUM_CONFIG")
    return read_settings(_completed(_only(_right_names(given, wrong), given))), frozenset(wrong)


def _right_names(given: Iterable[str], wrong: set[str]) -> list[str]:
    return [name for name in given if wrong.isdisjoint({name, _owner(name)})]


def _reads(given: Mapping[str, str], *names: str) -> bool:
    """Tell whether these variables are right, if all others were."""
    try:
        read_settings(_completed(_only(names, given), without=names))
    except BadConfiguration:
        return False
    return True


def _completed(right: dict[str, str], without: Iterable[str] = ()) -> dict[str, str]:
    taken = {*(_owner(name) for name in right), *without}
    return {name: value for name, value in _RIGHT.items() if name not in taken} | right


def _owner(name: str) -> str:
    """Return the variable whose value is in the file that this one names, or the variable itself."""
    return next((variable.name for variable in _VARIABLES.values() if variable.file == name), name)


def _only(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in names if environment.get(name)}
