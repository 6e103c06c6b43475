from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.local import subreaper
from iterum_sidecar.local.processes import ChildrenImpossible, CommandFailed, open_children
from tests.unit.local.processes.places import (
    FOREVER,
    PATH,
    Pipe,
    Place,
    a_line,
    opened,
    parent_of,
    python,
    request,
    shell,
)

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.local.processes import Children

# -- what a child is given


async def test_the_environment_is_passed_exactly(place: Place) -> None:
    environment = {**PATH, "EMPTY": "", "EQUAL": "a=b=c", "LINES": "1\n2", "BYTES": "\udcff\udc80é"}
    written = await place.output(["env", "-0"], environment)
    assert dict(entry.split(b"=", 1) for entry in written.rstrip(b"\0").split(b"\0")) == {
        b"PATH": os.fsencode(PATH["PATH"]),
        b"EMPTY": b"",
        b"EQUAL": b"a=b=c",
        b"LINES": b"1\n2",
        b"BYTES": b"\xff\x80\xc3\xa9",
    }


async def test_arguments_are_passed_exactly(place: Place) -> None:
    words = ["", " ", "'\"$HOME*", "two\nlines", "\udcff\udc80", "é", "-x", "y" * 100_000]
    written = await place.output(
        python(
            "import os, sys", "os.write(1, b'|'.join(map(os.fsencode, sys.argv[1:])))", FOREVER[:0]
        )
        + words
    )
    assert written == b"|".join(map(os.fsencode, words))


async def test_more_can_be_asked_at_once_than_the_line_holds(place: Place) -> None:
    codes = []

    async def run(children: Children) -> None:
        codes.append(await place.run(children, ["true", "y" * 100_000]))

    async with opened() as children, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(run, children)
    assert codes == [0] * 20


async def test_a_child_runs_in_its_directory(place: Place) -> None:
    odd = place.path / os.fsdecode(b"a b\xff")
    odd.mkdir()
    async with opened() as children:
        child = await children.start(["pwd", "-P"], environment=PATH, directory=odd, log=place.log)
        assert await child.wait() == 0
    assert place.log.read_bytes() == os.fsencode(odd.resolve()) + b"\n"


async def test_a_command_with_a_slash_is_relative_to_the_directory(place: Place) -> None:
    script = place.path / "step"
    script.write_text("#!/bin/sh\necho here\n")
    script.chmod(0o755)
    assert await place.output(["./step"]) == b"here\n"


async def test_a_command_without_a_slash_is_looked_for_in_the_path_that_the_child_is_given(
    place: Place,
) -> None:
    script = place.path / "only-here"
    script.write_text("#!/bin/sh\necho found\n")
    script.chmod(0o755)
    assert await place.output(["only-here"], {"PATH": f"/nowhere:{place.path}"}) == b"found\n"


async def test_a_relative_directory_and_log_are_the_runs_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as children:
        monkeypatch.chdir(place.path.parent)
        child = await children.start(["pwd"], environment=PATH, directory="steps", log="out")
        assert await child.wait() == 0
    assert (place.path.parent / "out").read_text() == f"{place.path}\n"


async def test_both_outputs_are_appended_to_the_log(place: Place) -> None:
    place.log.write_text("before\n")
    async with opened() as children:
        await place.run(children, shell("echo out; echo err >&2"))
        await place.run(children, shell("echo again"))
    assert place.log.read_text() == "before\nout\nerr\nagain\n"


async def test_a_large_output_arrives_whole(place: Place) -> None:
    written = await place.output(shell("head -c 30000000 /dev/zero; head -c 1000 /dev/zero >&2"))
    assert len(written) == 30_001_000


async def test_a_child_has_no_file_open_but_the_three_and_an_empty_input(place: Place) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        written = await place.output(shell("cat; readlink /proc/self/fd/0; ls /proc/self/fd"))
    finally:
        os.close(reading)
        os.close(writing)
    # The fourth is the directory that `ls` reads.
    assert written == b"/dev/null\n0\n1\n2\n3\n"


async def test_a_child_has_every_signal_at_its_default_and_none_blocked(
    place: Place, pipe: Pipe
) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    # Started by this thread, the subreaper has the mask as well.
    with a_line() as line:
        signal.signal(signal.SIGUSR1, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        line.sendall(request(1, ["/bin/cat", "/proc/self/status"], pipe.path))
        await pipe.is_let_go()
    status = dict(line.split(":", 1) for line in pipe.read.decode().splitlines())
    # Signals 32 and 33 are the C library's own; it lets no one change what they do.
    others = ~(0b11 << 31)
    assert int(status["SigIgn"], 16) & others == 0
    assert int(status["SigBlk"], 16) & others == 0


async def test_the_terminals_signals_reach_neither_a_child_nor_its_parents(
    place: Place, pipe: Pipe
) -> None:
    async with opened() as children:
        child = await place.start(children, shell("echo ready; sleep 60"), pipe.path)
        await pipe.says(b"ready")
        worker = parent_of(child.pid)
        keeper = parent_of(worker)
        assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
        assert os.getsid(worker) == os.getsid(keeper) != os.getsid(0)
        for process in (worker, keeper):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(process, number)
        assert await place.run(children, ["true"]) == 0
        child.kill()
        assert await child.wait() == -9


# -- what cannot be started


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["no-such-command"], "[Errno 2] No such file or directory: 'no-such-command'"),
        (["./no-such"], "[Errno 2] No such file or directory: './no-such'"),
        (["./plain"], "[Errno 13] Permission denied: './plain'"),
        (["/"], "[Errno 13] Permission denied: '/'"),
        (["./no-program"], "[Errno 8] Exec format error: './no-program'"),
        (["true", "x" * 200_000], "[Errno 7] Argument list too long: 'true'"),
        ([], "the command is empty"),
        (["true", "a\0b"], r"'a\x00b' holds a NUL character, which no program can be given"),
        (
            ["true", "\ud800"],
            r"'\ud800' cannot be given to a program: surrogates not allowed (utf-8)",
        ),
    ],
)
async def test_what_cannot_be_run_says_why(place: Place, command: list[str], error: str) -> None:
    (place.path / "plain").write_text("#!/bin/sh\n")
    (place.path / "no-program").write_text("neither a script nor a program\n")
    (place.path / "no-program").chmod(0o755)
    async with opened() as children:
        with pytest.raises(CommandFailed) as failure:
            await place.start(children, command)
        assert str(failure.value) == error
        assert await place.run(children, ["true"]) == 0


async def test_a_missing_directory_or_one_for_the_log_is_named(place: Place) -> None:
    nowhere = place.path / "nowhere"
    async with opened() as children:
        with pytest.raises(CommandFailed) as failure:
            await children.start(["true"], environment=PATH, directory=nowhere, log=place.log)
        assert str(failure.value) == f"[Errno 2] No such file or directory: '{nowhere}'"
        cause = failure.value.__cause__
        assert isinstance(cause, FileNotFoundError)
        assert cause.filename == str(nowhere)
        with pytest.raises(CommandFailed) as failure:
            await place.start(children, ["true"], nowhere / "log")
        assert str(failure.value) == f"[Errno 2] No such file or directory: '{nowhere}/log'"


@pytest.mark.parametrize("name", ["", "A=B"])
async def test_a_variable_that_cannot_be_is_named(place: Place, name: str) -> None:
    async with opened() as children:
        with pytest.raises(CommandFailed, match=f"^'{name}' cannot be the name"):
            await place.start(children, ["true"], environment={name: "x"})


async def test_another_system_than_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(
        ChildrenImpossible, match=r"^local runs need Linux, .*; use a Linux machine"
    ):
        async with open_children():
            pytest.fail("it was opened")


@pytest.mark.parametrize("shows", ["nothing", "others"])
async def test_a_proc_that_does_not_show_our_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shows: str
) -> None:
    if shows == "others":
        # As in a PID namespace of its own that has the /proc of the one around it.
        (tmp_path / "self").symlink_to(str(os.getpid() + 1))
    monkeypatch.setattr(subreaper, "PROC", str(tmp_path))
    with pytest.raises(ChildrenImpossible, match=r"by /proc, which .*; mount it: mount -t proc"):
        async with open_children():
            pytest.fail("it was opened")
