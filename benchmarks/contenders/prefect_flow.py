"""Copy a folder with Prefect, a task for each file and two threads: python prefect_flow.py SOURCE TARGET.

A task whose result is cached under its paths and its input's content is not run again. No server is needed: Prefect
starts one for the time of the run, with its database under PREFECT_HOME.
"""
# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"
# Prefect is not among what the project is checked with, so its decorators are unknown.

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner


def by_content(_context: object, parameters: dict[str, Any]) -> str:
    """Return what the result of a task depends on."""
    digest = hashlib.sha256(Path(parameters["source"]).read_bytes())
    return f"{parameters['target']}-{digest.hexdigest()}".replace("/", "_")


@task(cache_key_fn=by_content, persist_result=True)
def copy(source: str, target: str) -> None:
    """Copy one file."""
    shutil.copyfile(source, target)


@flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
def copy_folder(source: str, target: str) -> None:
    """Copy every file."""
    Path(target).mkdir(exist_ok=True)
    copies = [
        copy.submit(str(path), str(Path(target) / path.name)) for path in Path(source).iterdir()
    ]
    for each in copies:
        each.result()


if __name__ == "__main__":
    copy_folder(sys.argv[1], sys.argv[2])
