"""One step of a pipeline as its pod sees it: names, a volume, and the environment that says them."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from testbed.object_stores import ObjectStore
    from testbed.rabbitmq import RabbitMQ

__all__ = ["Step", "make_step"]

INPUT_SOCKET = "in.sock"
OUTPUT_SOCKET = "out.sock"
CONFIG_PATH = "config"
SOCKET_PATH_LIMIT = 107


@dataclasses.dataclass(frozen=True)
class Step:
    """Names as the manager makes them (contract section 9), and the volume of one pod."""

    pipeline_hash: str
    name: str
    volume: Path
    input_queue: str
    output_queue: str
    input_bucket: str
    output_bucket: str

    @property
    def lineage_queue(self) -> str:
        """The queue for the pipeline's lineage."""
        return f"{self.pipeline_hash}-lineage"

    @property
    def dead_letter_queue(self) -> str:
        """The queue for what cannot be processed."""
        return f"{self.input_queue}-dead-letter"

    @property
    def input_socket(self) -> Path:
        """The socket from which the transformation reads."""
        return self.volume / INPUT_SOCKET

    @property
    def output_socket(self) -> Path:
        """The socket to which the transformation writes."""
        return self.volume / OUTPUT_SOCKET

    @property
    def config_directory(self) -> Path:
        """Where config files appear."""
        return self.volume / CONFIG_PATH

    def transformation_environment(
        self, config: Mapping[str, object] | None = None
    ) -> dict[str, str]:
        """Return the variables that a transformation gets; its working directory is its own business."""
        return {
            "DATA_VOLUME_PATH": str(self.volume),
            "TRANSFORMATION_STEP_INPUT": INPUT_SOCKET,
            "TRANSFORMATION_STEP_OUTPUT": OUTPUT_SOCKET,
            "ITERUM_CONFIG_PATH": CONFIG_PATH,
            "ITERUM_CONFIG": json.dumps(config or {}),
            "ITERUM_NAME": self.name,
            "PIPELINE_HASH": self.pipeline_hash,
        }

    def sidecar_environment(
        self,
        broker: RabbitMQ,
        store: ObjectStore,
        *,
        manager_url: str = "",
        prefetch: int | None = None,
        config: Mapping[str, object] | None = None,
    ) -> dict[str, str]:
        """Return the variables that a sidecar gets, and no others."""
        return {
            **self.transformation_environment(config),
            "MANAGER_URL": manager_url,
            "MQ_BROKER_URL": broker.url,
            "MQ_INPUT_QUEUE": self.input_queue,
            "MQ_OUTPUT_QUEUE": self.output_queue,
            "MQ_PREFETCH_COUNT": "" if prefetch is None else str(prefetch),
            "MINIO_URL": store.endpoint,
            "MINIO_ACCESS_KEY": store.access_key,
            "MINIO_SECRET_KEY": store.secret_key,
            "MINIO_USE_SSL": "false" if store.tls is None else "true",
            "MINIO_OUTPUT_BUCKET": self.output_bucket,
        }


def make_step(volume: Path, *, name: str = "a-step", pipeline_hash: str | None = None) -> Step:
    """Name everything for one step of a new pipeline; nothing is made or declared."""
    run = pipeline_hash or uuid.uuid4().hex
    step = Step(
        pipeline_hash=run,
        name=f"{run}-{name}",
        volume=volume,
        input_queue=f"{run}-to-{name}",
        output_queue=f"{run}-from-{name}",
        input_bucket=f"{run}-input-output",
        output_bucket=f"{run}-{name}-output",
    )
    if len(str(step.output_socket).encode()) > SOCKET_PATH_LIMIT:
        raise ValueError(f"{volume} is too long a path for a socket in it")
    return step
