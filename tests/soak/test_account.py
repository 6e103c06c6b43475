"""The account of a soak finds each thing that may not be: what it is silent about would be a promise that nobody holds."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from testbed.fragments import Message, RemoteFile, RemoteFragment
from testbed.object_stores import ObjectStore
from testbed.step import Step, make_step

from .account import Account, account_of
from .inputs import Input, Nature, input_of

if TYPE_CHECKING:
    from pathlib import Path

SEED = 7
MADE = 100


@dataclasses.dataclass
class Queues:
    """What a sidecar that does everything right leaves behind."""

    step: Step
    store: ObjectStore
    outputs: list[Message] = dataclasses.field(default_factory=list)
    lineage: list[Message] = dataclasses.field(default_factory=list)
    dead_letters: list[Message] = dataclasses.field(default_factory=list)

    def work(self, made: int) -> None:
        for number in range(made):
            each = input_of(SEED, number, self.step.input_bucket)
            if each.nature is Nature.GOOD:
                self.put_out(each, f"{number:064x}")
            else:
                self.bury(each)

    def put_out(self, origin: Input, output_id: str, content: bytes | None = None) -> None:
        files = []
        for position, file in enumerate(origin.fragment.files):
            path = f"iterum_data/{output_id}/{file.name}"
            files.append(RemoteFile(file.name, path, self.step.output_bucket))
            assert self.store.directory is not None
            stored = self.store.directory / self.step.output_bucket / path
            stored.parent.mkdir(parents=True, exist_ok=True)
            stored.write_bytes(origin.content(position)[::-1] if content is None else content)
        output = RemoteFragment(output_id, tuple(files), (origin.fragment.fragment_id,))
        self.outputs.append(message(output.body()))
        said = {"transformation_step": self.step.name, "description": output.description()}
        self.lineage.append(message(json.dumps(said).encode()))

    def bury(self, origin: Input) -> None:
        self.dead_letters.append(message(origin.body, {"x-iterum-reason": "it is bad"}))

    def account(self, made: int = MADE) -> Account:
        return account_of(
            SEED,
            made,
            self.step,
            self.store,
            outputs=self.outputs,
            lineage=self.lineage,
            dead_letters=self.dead_letters,
        )


def message(body: bytes, headers: dict[str, str] | None = None) -> Message:
    return Message(body, headers or {}, "application/json", 2)


@pytest.fixture
def queues(tmp_path: Path) -> Queues:
    queues = Queues(make_step(tmp_path / "v"), ObjectStore("nowhere:1", directory=tmp_path))
    queues.work(MADE)
    return queues


def first(queues: Queues, nature: Nature) -> Input:
    return next(
        each
        for each in (input_of(SEED, number, queues.step.input_bucket) for number in range(MADE))
        if each.nature is nature
    )


def test_what_is_right_is_right(queues: Queues) -> None:
    account = queues.account()
    assert account.is_right, account
    assert account.inputs == {
        Nature.GOOD: 97,
        Nature.MALFORMED: 1,
        Nature.MISSING: 1,
        Nature.POISON: 1,
    }
    assert account.outputs == 97
    assert account.repeats.total() == 0


def test_a_message_that_came_twice_is_counted_and_permitted(queues: Queues) -> None:
    queues.outputs.append(queues.outputs[3])
    queues.lineage.append(queues.lineage[3])
    queues.dead_letters.append(queues.dead_letters[0])
    account = queues.account()
    assert account.is_right
    assert account.repeats == {"outputs": 1, "lineage": 1, "dead letters": 1}
    assert account.outputs == 97


def test_an_output_that_is_not_there_is_lost(queues: Queues) -> None:
    del queues.outputs[3], queues.lineage[3]
    account = queues.account()
    assert len(account.lost) == 1
    assert account.lost[0].startswith("input 3 (good)")


def test_a_dead_letter_that_is_not_there_is_lost(queues: Queues) -> None:
    del queues.dead_letters[0]
    assert len(queues.account().lost) == 1


def test_lineage_that_is_not_there_is_lost(queues: Queues) -> None:
    del queues.lineage[3]
    assert len(queues.account().lost) == 1


def test_a_second_id_is_found(queues: Queues) -> None:
    queues.put_out(first(queues, Nature.GOOD), "f" * 64)
    account = queues.account()
    assert len(account.second) == 1
    assert not account.lost


def test_other_content_is_found(queues: Queues) -> None:
    del queues.outputs[3], queues.lineage[3]
    queues.put_out(input_of(SEED, 3, queues.step.input_bucket), f"{3:064x}", b"something else")
    account = queues.account()
    assert len(account.wrong) == 1
    assert "other content" in account.wrong[0]
    assert len(account.lost) == 1


def test_an_object_that_is_not_there_is_found(queues: Queues) -> None:
    assert queues.store.directory is not None
    output = RemoteFragment.of_body(queues.outputs[3].body)
    (queues.store.directory / output.files[0].bucket / output.files[0].path).unlink()
    assert "not there" in queues.account().wrong[0]


def test_an_innocent_dead_letter_is_found(queues: Queues) -> None:
    queues.bury(first(queues, Nature.GOOD))
    account = queues.account()
    assert len(account.innocent) == 1
    assert "it is bad" in account.innocent[0]


def test_an_output_of_a_bad_input_is_found(queues: Queues) -> None:
    queues.put_out(first(queues, Nature.POISON), "f" * 64)
    assert "should be a dead letter" in queues.account().wrong[0]


def test_what_was_never_put_in_is_found(queues: Queues) -> None:
    later = input_of(SEED, MADE, queues.step.input_bucket)
    assert later.nature is Nature.GOOD
    queues.put_out(later, "f" * 64)
    queues.bury(later)
    account = queues.account()
    assert len(account.wrong) == 2
    assert not account.lost


def test_lineage_of_nothing_is_found(queues: Queues) -> None:
    del queues.outputs[3]
    account = queues.account()
    assert len(account.wrong) == 1
    assert "lineage" in account.wrong[0]
