"""What came of a fragment before it was struck is not published again in its next life, as far as this program can tell."""

from __future__ import annotations

import pytest

from iterum_sidecar.entries import Admission, Entry, Output, Verdict
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger

ID = "a" * 64
TestEntry = Entry[str, None]


def admitted(ledger: Ledger[str, None], delivery: str, attempts: int = 0) -> TestEntry:
    admission, entry = ledger.admit(ID, "files", delivery, None, attempts=attempts)
    assert admission is Admission.NEW
    assert entry is not None
    ledger.is_ready(entry)
    ledger.hand_out(entry)
    return entry


def result(ledger: Ledger[str, None], process: str) -> Output[str, None]:
    return ledger.take_result([ID], None, ["x"], process)


@pytest.mark.parametrize("early", [False, True])
def test_an_output_that_was_confirmed_is_known_in_the_next_life(early: bool) -> None:
    """Whether that is admitted before the first is closed, or after."""
    ledger: Ledger[str, None] = Ledger(OutputIdentity("pipeline", "step"), attempts_allowed=3)
    first = admitted(ledger, "first")
    output = result(ledger, "one")
    assert not output.repeated
    ledger.output_safe(output)
    (fallen,) = ledger.connection_closed([first], death=True)
    assert fallen.verdict is Verdict.STRIKE
    if early:
        second = admitted(ledger, "second", attempts=1)
        ledger.close(first)
    else:
        ledger.close(first)
        second = admitted(ledger, "second", attempts=1)
    again = result(ledger, "two")
    assert (again.repeated, again.output_id) == (True, output.output_id)
    assert not result(ledger, "two").repeated, "a further one is another"
    assert second.pending == 1
