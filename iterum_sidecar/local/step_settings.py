"""What a step of a local run is told: the variables of its transformation, and the settings of its sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.local.volumes import INPUT_SOCKET, OUTPUT_SOCKET
from iterum_sidecar.pipeline.model import output_bucket, queue_name, step_name
from iterum_sidecar.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iterum_sidecar.pipeline.model import Pipeline, Step

__all__ = ["settings_of", "variables_of"]

#: What a step's configuration does not say under "sidecar", where a pod's defaults are not right.
DEFAULTS: Final = {
    # On a machine where its program is there already; one that loads for longer says so.
    "transformation_start_timeout": "30",
    # One that died is started again after 2 s at most, and then has its start.
    "transformation_return_timeout": "120",
}
#: Whoever has pressed Ctrl-C once can press it again.
DRAIN_SECONDS: Final = "86400"

_CONFIG_FOLDER: Final = "config"


def variables_of(pipeline: Pipeline, step: Step, pipeline_hash: str, volume: str) -> dict[str, str]:
    """Return the variables that both the sidecar and the transformation are given (contract, section 1)."""
    return {
        "DATA_VOLUME_PATH": volume,
        "TRANSFORMATION_STEP_INPUT": INPUT_SOCKET,
        "TRANSFORMATION_STEP_OUTPUT": OUTPUT_SOCKET,
        "ITERUM_NAME": step_name(pipeline_hash, step.name),
        "PIPELINE_HASH": pipeline_hash,
        "ITERUM_CONFIG": pipeline.iterum_config(step, pipeline_hash),
        "ITERUM_CONFIG_PATH": _CONFIG_FOLDER,
    }


def settings_of(
    pipeline: Pipeline, step: Step, pipeline_hash: str, variables: Mapping[str, str]
) -> Settings:
    """Return the settings of the sidecar beside a transformation that has these `variables`.

    Raises:
        BadConfiguration: the step's own settings, under "sidecar" in its configuration, are wrong.
    """
    environment = {
        **variables,
        "MQ_BROKER_URL": "amqp://local",
        "MQ_INPUT_QUEUE": queue_name(pipeline_hash, step.input_channel),
        "MQ_OUTPUT_QUEUE": queue_name(pipeline_hash, step.output_channel),
        "MQ_PREFETCH_COUNT": str(step.prefetch_count or 0),
        "MINIO_URL": "local:9000",
        "MINIO_ACCESS_KEY": "local",
        "MINIO_SECRET_KEY": "local",
        "MINIO_OUTPUT_BUCKET": output_bucket(pipeline_hash, step.name),
        "SIDECAR_LINEAGE": "off",
        "SIDECAR_TRACING": "off",
        "SIDECAR_DRAIN_SECONDS": DRAIN_SECONDS,
        # No other sidecar comes that a transformation could wait for.
        "SIDECAR_KILL_ON_ERROR": "true",
    }
    own = pipeline.merged_config(step).get("sidecar") or {}
    for key, value in DEFAULTS.items():
        if key not in own:
            environment[f"SIDECAR_{key.upper()}"] = value
    try:
        return read_settings(environment)
    except BadConfiguration as error:
        raise BadConfiguration([f"{step.name}: {problem}" for problem in error.problems]) from None
