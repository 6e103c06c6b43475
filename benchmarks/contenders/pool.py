"""Copy a folder with a pool of two processes: python pool.py SOURCE TARGET. It keeps nothing, so it begins anew each time."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
from pathlib import Path


def main(source: Path, target: Path) -> None:
    """Copy every file."""
    target.mkdir(exist_ok=True)
    with multiprocessing.Pool(2) as pool:
        pool.starmap(shutil.copyfile, [(path, target / path.name) for path in source.iterdir()])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
