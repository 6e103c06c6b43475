from __future__ import annotations

import json
from typing import TYPE_CHECKING

from iterum_sidecar.local.own_fragmenter import Grouped
from tests.unit.local.fragmenters import GROUP, HASHES, KILL, NAMES, PYTERUM, Actor, Starter, run

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


async def test_a_fragmenter_written_against_pyterum_runs_unchanged(tmp_path: Path) -> None:
    starter = Starter(PYTERUM, tmp_path)
    groups = await run(tmp_path, starter, config=json.dumps({"size": 2}))
    assert groups == [
        Grouped(("a.jpg", "b.jpg"), b'{"start": 0}'),
        Grouped(("c/d.jpg",), b'{"start": 2}'),
    ]
    assert starter.environment == {
        "DATA_VOLUME_PATH": f"{tmp_path}/v",
        "FRAGMENTER_INPUT": "tts.sock",
        "FRAGMENTER_OUTPUT": "fts.sock",
        "ITERUM_CONFIG": '{"size": 2}',
        "ITERUM_CONFIG_PATH": "config",
        "ITERUM_NAME": "pipeline-fragmenter",
        "PIPELINE_HASH": "pipeline",
    }


async def test_two_hundred_thousand_files_in_one_group_pass_through_pyterum(tmp_path: Path) -> None:
    names = [f"photos/été/{number:06}.jpg" for number in range(200_000)]
    (group,) = await run(
        tmp_path,
        Starter(PYTERUM, tmp_path),
        names,
        [f"{number:064x}" for number in range(200_000)],
        config=json.dumps({"size": 1_000_000}),
    )
    assert group.names == tuple(names)


async def test_the_list_is_sent_as_the_contract_has_it_and_a_kill_behind_it(
    tmp_path: Path,
) -> None:
    program = """
        come()
        assert read(source) == KILL
        send(target, {"files": files[::-1], "metadata": {"files": files}})
        send(target, {"files": files[:1]})
        send(target, KILL)
    """
    first, second = await run(tmp_path, program)
    assert (first.names, second.names) == (tuple(NAMES[::-1]), ("a.jpg",))
    pairs = zip(NAMES, HASHES, strict=True)
    assert json.loads(first.custom or "") == {"files": [f"{name}/{each}" for name, each in pairs]}


async def test_no_files_are_an_empty_list(tmp_path: Path) -> None:
    assert await run(tmp_path, "come(); assert files == []; send(target, KILL)", [], []) == []


async def test_metadata_that_says_nothing_is_no_custom_metadata(tmp_path: Path) -> None:
    program = """
        come()
        for metadata in ({}, None, {"a": "é"}):
            send(target, {"files": files[:1], "metadata": metadata})
        target.sendall(frame(b'{"metadata": { }, "files": [%s]}' % json.dumps(files[1]).encode()))
        send(target, {"files": files[2:], "more": 1})
        send(target, KILL)
    """
    groups = await run(tmp_path, program)
    assert [group.custom for group in groups] == [None, None, b'{"a": "\\u00e9"}', None, None]


async def test_groups_that_were_sent_just_before_the_end_are_all_read(tmp_path: Path) -> None:
    program = """
        come()
        other = connect("FRAGMENTER_OUTPUT")
        for _ in range(400):
            send(target, {"files": files[:1]})
            send(other, {"files": files[1:2]})
        send(target, KILL)
        os._exit(0)
    """
    assert len(await run(tmp_path, program)) == 800


async def test_a_fragmenter_that_answers_before_it_reads_is_not_held_up(tmp_path: Path) -> None:
    names = [f"{number:06}" for number in range(30_000)]
    program = f"""
        target = connect("FRAGMENTER_OUTPUT")
        for number in range(30_000):
            send(target, {{"files": ["%06d/{"1" * 64}" % number]}})
        source = connect("FRAGMENTER_INPUT")
        files = read(source)["data_files"]
        send(target, KILL)
    """
    assert len(await run(tmp_path, program, names, ["1" * 64] * 30_000)) == 30_000


async def test_a_hundred_thousand_groups_from_eight_connections_at_once_are_all_read(
    tmp_path: Path,
) -> None:
    names = [f"{number:06}" for number in range(100_000)]
    program = """
        from threading import Thread
        come()
        def pour(files):
            connection = connect("FRAGMENTER_OUTPUT")
            for file in files:
                connection.sendall(frame(b'{"files":["%s"]}' % file.encode()))
            send(connection, KILL)
        threads = [Thread(target=pour, args=[files[number::8]]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        send(target, KILL)
    """
    groups = await run(tmp_path, program, names, ["1" * 64] * 100_000)
    assert sorted(group.names for group in groups) == [(name,) for name in names]


async def test_the_same_group_twice_is_two_fragments(tmp_path: Path) -> None:
    program = (
        "come(); send(target, {'files': files}); send(target, {'files': files}); send(target, KILL)"
    )
    assert await run(tmp_path, program) == [Grouped(tuple(NAMES), None)] * 2


async def test_names_may_hold_whatever_a_file_system_allows(tmp_path: Path) -> None:
    names = ["a\nb", "\t\x1b[2J", '"\\\\', "..a/ ", "\u2028é"]
    program = "come(); send(target, {'files': files}); send(target, KILL)"
    (group,) = await run(tmp_path, program, names, ["1" * 64] * len(names))
    assert group.names == tuple(names)


async def test_hundreds_of_idle_connections_hinder_nothing(tmp_path: Path) -> None:
    program = """
        come()
        held = [connect(name) for name in ["FRAGMENTER_OUTPUT", "FRAGMENTER_INPUT"] * 150]
        send(target, {"files": files})
        send(target, KILL)
    """
    assert await run(tmp_path, program) == [Grouped(tuple(NAMES), None)]


async def test_the_list_is_for_the_first_connection_that_reads_it(tmp_path: Path) -> None:
    program = """
        connect("FRAGMENTER_INPUT").close()
        half = connect("FRAGMENTER_INPUT")
        half.recv(2)
        half.close()
        come()
        assert read(connect("FRAGMENTER_INPUT")) == KILL
        send(target, {"files": files})
        send(target, KILL)
    """
    assert await run(tmp_path, program) == [Grouped(tuple(NAMES), None)]


async def test_one_that_thinks_for_long_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    actor = Actor(29.0, "tts.sock", 86_400.0, "fts.sock", GROUP, 86_400.0, KILL, 29.0)
    assert await run(tmp_path, actor) == [Grouped(("a.jpg",), None)]


async def test_others_may_come_and_go_on_when_one_connection_is_done(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    actor = Actor("fts.sock", GROUP, KILL, 20.0, "fts.sock", 86_400.0, GROUP, KILL, 29.0)
    assert len(await run(tmp_path, actor)) == 2
