"""Copy a folder with Luigi, a task for each file and two workers: python luigi_tasks.py SOURCE TARGET.

A task is complete when its result is there and no older than its input; Luigi alone looks only whether it is there.
"""
# mypy: disable-error-code="import-not-found,import-untyped,misc,no-untyped-call"
# Luigi is not among what the project is checked with, so its classes are unknown.

from __future__ import annotations

import os
import shutil
import sys

import luigi


class CopyFile(luigi.Task):
    """Copy one file."""

    source = luigi.Parameter()
    target = luigi.Parameter()

    def output(self) -> luigi.LocalTarget:
        """Return where the result is."""
        return luigi.LocalTarget(self.target)

    def complete(self) -> bool:
        """Tell whether there is nothing to do."""
        try:
            return os.stat(self.target).st_mtime_ns >= os.stat(self.source).st_mtime_ns
        except FileNotFoundError:
            return False

    def run(self) -> None:
        """Copy it so that it appears whole or not at all."""
        # Luigi's own temporary_path refuses to replace a result.
        partial = f"{self.target}.partial"
        shutil.copyfile(self.source, partial)
        os.replace(partial, self.target)


class CopyFolder(luigi.WrapperTask):
    """Copy every file."""

    source = luigi.Parameter()
    target = luigi.Parameter()

    def requires(self) -> list[luigi.Task]:
        """Return the tasks of the files."""
        return [
            CopyFile(entry.path, os.path.join(self.target, entry.name))
            for entry in os.scandir(self.source)
        ]


if __name__ == "__main__":
    os.makedirs(sys.argv[2], exist_ok=True)
    done = luigi.build(
        [CopyFolder(sys.argv[1], sys.argv[2])],
        workers=2,
        local_scheduler=True,
        log_level="WARNING",
    )
    sys.exit(not done)
