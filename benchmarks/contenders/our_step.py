"""The copying step of a pipeline, with the project's own client."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from iterum_sidecar.step import transform

if TYPE_CHECKING:
    from iterum_sidecar.step import Fragment


@transform
def copy(fragment: Fragment) -> None:
    """Copy every file."""
    for file in fragment.files:
        with fragment.create(file.name) as path:
            shutil.copyfile(file.path, path)


if __name__ == "__main__":
    copy.run()
