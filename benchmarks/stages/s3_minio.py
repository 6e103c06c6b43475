"""Objects by minio-py, in threads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import urllib3
from minio import Minio

from benchmarks.stages.on_threads import at_a_time

if TYPE_CHECKING:
    from benchmarks.stages.task import Meter, Task

READ_SIZE = 1 << 18


def _client(task: Task) -> Minio:
    return Minio(
        task.endpoint,
        access_key=task.access_key,
        secret_key=task.secret_key,
        secure=False,
        region="us-east-1",
        http_client=urllib3.PoolManager(maxsize=task.at_a_time),
    )


def get(task: Task, meter: Meter) -> None:
    """Stream each object to a file: one request, where its own `fget_object` makes two."""
    client = _client(task)

    def fetch(number: int) -> None:
        answer = client.get_object(bucket_name=task.bucket, object_name=task.file_name(number))
        try:
            with open(task.path(number), "xb", buffering=0) as file:
                file.writelines(answer.stream(READ_SIZE))
        finally:
            answer.close()
            answer.release_conn()

    with meter:
        at_a_time(task.at_a_time, fetch, range(task.count))


def put(task: Task, meter: Meter) -> None:
    """Store each file as an object; each request is signed over its body."""
    client = _client(task)

    def send(number: int) -> None:
        with open(task.path(number), "rb") as file:
            client.put_object(
                bucket_name=task.bucket,
                object_name=task.file_name(number),
                data=file,
                length=os.fstat(file.fileno()).st_size,
            )

    with meter:
        at_a_time(task.at_a_time, send, range(task.count))
