"""Every row of the contract's table of faults reads: nothing lost, nothing stuck, nothing doubled, exit 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.contract_table import ROWS, Row, account_of, is_as_promised

if TYPE_CHECKING:
    from tests.wire.journey import Journey

#: The last row is 36 runs in the table, and one here: every other test of the wire is one more.
ONCE = [Row(row.fault, row.go, row.scenario, row.dead) for row in ROWS]


@pytest.mark.parametrize("row", ONCE, ids=[row.fault for row in ONCE])
def test_a_row_of_the_contract(row: Row, journey: Journey) -> None:
    account = account_of(journey, row)
    assert is_as_promised(row, account), account
