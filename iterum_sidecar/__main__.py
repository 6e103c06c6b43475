"""`python -m iterum_sidecar` is the same as the command `iterum-sidecar`."""

from __future__ import annotations

import sys

from iterum_sidecar.cli import main

if __name__ == "__main__":
    sys.exit(main())
