"""Objects by boto3, in threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
import botocore.config

from benchmarks.stages.on_threads import at_a_time

if TYPE_CHECKING:
    from botocore.client import BaseClient

    from benchmarks.stages.task import Meter, Task

READ_SIZE = 1 << 18


def _client(task: Task) -> BaseClient:
    return boto3.client(
        "s3",
        endpoint_url=f"http://{task.endpoint}",
        aws_access_key_id=task.access_key,
        aws_secret_access_key=task.secret_key,
        region_name="us-east-1",
        config=botocore.config.Config(
            s3={"addressing_style": "path"}, max_pool_connections=task.at_a_time
        ),
    )


def get(task: Task, meter: Meter) -> None:
    """Stream each object to a file."""
    client = _client(task)

    def fetch(number: int) -> None:
        answer = client.get_object(Bucket=task.bucket, Key=task.file_name(number))
        with open(task.path(number), "xb", buffering=0) as file:
            file.writelines(answer["Body"].iter_chunks(READ_SIZE))

    with meter:
        at_a_time(task.at_a_time, fetch, range(task.count))


def put(task: Task, meter: Meter) -> None:
    """Store each file as an object, in one request, with the checksums that it adds by itself."""
    client = _client(task)

    def send(number: int) -> None:
        with open(task.path(number), "rb") as file:
            client.put_object(Bucket=task.bucket, Key=task.file_name(number), Body=file)

    with meter:
        at_a_time(task.at_a_time, send, range(task.count))
