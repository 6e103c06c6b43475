"""An environment in which every variable is right, for tests to spoil."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iterum_sidecar.check.findings import Finding, Findings, Outcome
from iterum_sidecar.check.variables import Readable, look_at_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

RIGHT = {
    "DATA_VOLUME_PATH": "/volume",
    "TRANSFORMATION_STEP_INPUT": "in.sock",
    "TRANSFORMATION_STEP_OUTPUT": "out.sock",
    "ITERUM_NAME": "edges",
    "PIPELINE_HASH": "hash",
    "ITERUM_CONFIG_PATH": "config",
    "MQ_BROKER_URL": "amqp://user:hunter2@127.0.0.1:5672/",
    "MQ_INPUT_QUEUE": "to-edges",
    "MQ_OUTPUT_QUEUE": "from-edges",
    "MINIO_URL": "127.0.0.1:9000",
    "MINIO_ACCESS_KEY": "access",
    "MINIO_SECRET_KEY": "swordfish",
    "MINIO_OUTPUT_BUCKET": "hash-edges-output",
}


def readable(**variables: str) -> Readable:
    """What can be read of the right environment with other values for some variables."""
    return look_at_variables(RIGHT | variables, Findings("variables"))


def by_subject(findings: Findings, outcome: Outcome | None = None) -> Mapping[str, Finding]:
    """The findings by their subjects, those with one outcome if it is given; no secret is in any."""
    assert "hunter2" not in repr(findings.all)
    assert "swordfish" not in repr(findings.all)
    return {
        finding.subject: finding for finding in findings.all if outcome in {None, finding.outcome}
    }


def failed(findings: Findings) -> Mapping[str, Finding]:
    """The findings that failed, by their subjects."""
    return by_subject(findings, Outcome.FAILED)
