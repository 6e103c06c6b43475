"""Fuzz the targets with Atheris, one after the other: `python -m tests.fuzz [TARGET …] [--seconds N] [--directory D]`.

Needs the extra `fuzz`. The first fault ends it, with the bytes that led to it in the directory: put them among the
target's seeds, where `test_targets.py` tries them ever after.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from random import Random

from tests.fuzz.mutation import changed_json

#: Longer inputs find nothing that shorter ones do not, and take longer.
LONGEST = 4096
#: No input of that length may need as much, whatever it claims.
MEBIBYTES = 512
SECONDS_FOR_ONE = 20


def main() -> int:
    """Run as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument(
        "--directory", type=Path, default=Path(".fuzz"), help="keeps what was found (.fuzz)"
    )
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        return fuzz(options.only, options.directory, options.seconds)
    from tests.fuzz.targets import TARGETS

    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    for name in options.targets or TARGETS:
        print(f"== {name}", flush=True)
        # A process for each: libFuzzer ends the one that it runs in.
        command = [sys.executable, "-m", "tests.fuzz", "--only", name]
        command += ["--seconds", str(options.seconds), "--directory", str(options.directory)]
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    return 0


def fuzz(name: str, directory: Path, seconds: int) -> int:
    """Fuzz one target in this process, which ends by that."""
    import atheris

    with atheris.instrument_imports(include=["iterum_sidecar", "pamqp", "xml", "email"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus = directory / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = directory / f"{name}.dict"
    words.write_text("".join(f'"{_quoted(word)}"\n' for word in target.words), encoding="ascii")
    options = [
        f"-dict={words}",
        f"-artifact_prefix={directory}/{name}-",
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-rss_limit_mb={MEBIBYTES}",
        f"-timeout={SECONDS_FOR_ONE}",
        "-print_final_stats=1",
        "-verbosity=0",
    ]

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        """Change what every other JSON message says, and the bytes of all else."""
        random = Random(seed)
        if random.random() < 0.5:
            try:
                return changed_json(data, random)[:longest]
            except (ValueError, RecursionError):
                pass  # not JSON any more
        mutated: bytes = atheris.Mutate(data, longest)
        return mutated

    arguments = [sys.argv[0], *options, str(corpus)]
    if target.says_json:
        atheris.Setup(arguments, target.run, custom_mutator=mutate)
    else:
        atheris.Setup(arguments, target.run)
    atheris.Fuzz()
    return 0


def _quoted(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    sys.exit(main())
