"""Each costly part of a sidecar alone, beside what people would take instead and beside the least that does the same.

`catalogue` names the stages and their contenders, `measuring` runs one of them in a process of its own (`process`) and looks
whether it did what it should. The contenders are in the modules named after them.
"""

from __future__ import annotations
