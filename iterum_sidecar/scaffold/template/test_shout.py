"""Tests of the step, which need no pipeline: `python test_shout.py`, or `pytest` where that is installed."""

from pathlib import Path

from shout import shout

from iterum_sidecar.step import run_on

INPUT = Path(__file__).parent / "input"


def test_a_text_comes_back_in_capitals() -> None:
    """The result is called like the file that it was made of."""
    (result,) = run_on(shout, INPUT / "seed.txt")
    (file,) = result.files
    assert file.name == "seed.txt"
    assert file.path.read_text(encoding="utf-8").startswith("A SEED IS SMALL")


if __name__ == "__main__":
    test_a_text_comes_back_in_capitals()
    print("the step does what it should")
