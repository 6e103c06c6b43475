"""compose.yaml by podman-compose: real RabbitMQ 4 and rclone, the sidecar's image, steps in containers of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from testbed.process import running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from testbed.podman import Podman
    from testbed.process import Process

ROOT = Path(__file__).parents[2]
PICTURES = sorted(path.stem for path in (ROOT / "examples/images/pictures").iterdir())
COPIES = 25
FRAGMENTS = COPIES * len(PICTURES)
BUILD_SECONDS = 400
RUN_SECONDS = 90
TWO_STEPS = "--env-file=deploy/compose/two-steps.env"

PICKY = """\
from iterum_sidecar.step import transform

@transform
def picky(fragment):
    (file,) = fragment.files
    text = open(file.path).read()
    if "bad" in text:
        raise ValueError("this text is bad")
    with fragment.create(file.name) as path:
        path.write_text(text.upper())

picky.run()
"""
SLOW = """\
import time
from iterum_sidecar.step import transform

@transform(gather="all")
def together(batch):
    # Long enough for a manager that looks at the queue alone to take this step for finished.
    time.sleep(4)
    texts = [open(file.path).read() for fragment in batch for file in fragment.files]
    with batch.create("together.txt") as path:
        path.write_text(" ".join(sorted(texts)))

together.run()
"""


def archive_of(podman: Podman) -> Path:
    return podman.directory / "rabbitmq.tar"


@pytest.fixture(scope="module")
def rabbitmq(podman: Podman) -> Iterator[Process]:
    """RabbitMQ 4.3 out of Debian's next release, being put together while the other images are built."""
    command = ["mmdebstrap", "--quiet", "--variant=essential", "--include=rabbitmq-server"]
    command += ['--aptopt=Acquire::Check-Valid-Until "false"']
    command += ['--aptopt=APT::Install-Recommends "false"', "forky", str(archive_of(podman))]
    with running(command, log=podman.directory / "rabbitmq.log") as process:
        yield process


@pytest.fixture(scope="module")
def broker_image(podman: Podman, rabbitmq: Process) -> str:
    """RabbitMQ in the place of the image that a registry would give."""
    name = "localhost/rabbitmq"
    assert rabbitmq.wait(BUILD_SECONDS).code == 0, rabbitmq.last_lines()
    changes = [
        "USER rabbitmq",
        "ENV RABBITMQ_NODENAME=rabbit@localhost",
        "ENV RABBITMQ_LOGS=-",
        'ENTRYPOINT ["/usr/lib/rabbitmq/bin/rabbitmq-server"]',
    ]
    archive = archive_of(podman)
    podman("import", "--quiet", *(f"--change={change}" for change in changes), str(archive), name)
    archive.unlink()
    return name


@pytest.fixture(scope="module")
def store_image(podman: Podman, base_image: str) -> str:
    """rclone out of its wheel, with the entrypoint of its own image."""
    name = "localhost/rclone"
    folder = podman.directory / "rclone"
    folder.mkdir()
    shutil.copy(Path(sys.executable).with_name("rclone"), folder)
    recipe = f'FROM {base_image}\nCOPY rclone /usr/local/bin/rclone\nENTRYPOINT ["rclone"]\n'
    (folder / "Containerfile").write_text(recipe, encoding="utf-8")
    podman("build", "--quiet", "--network=none", f"--tag={name}", str(folder))
    return name


@pytest.fixture(scope="module")
def examples_image(podman: Podman, image: str, base_image: str) -> str:
    """The examples' image; built after the sidecar's, which empties the folder of wheels that both use."""
    name = "localhost/iterum-examples"
    podman.run(["examples/build", name, base_image], seconds=BUILD_SECONDS)
    return name


def fixed_addresses() -> str:
    """Return an override that gives each service its address, and each the names of all.

    With podman 4.3 the name server leaves a container without answers for up to a minute when others end.
    """
    names = ["broker", "store", "seed", "step", "sidecar", "show", "second-step", "second-sidecar"]
    addresses = {name: f"10.89.177.{number}" for number, name in enumerate(names, start=10)}
    hosts = [f"{name}:{address}" for name, address in addresses.items()]
    services = {
        name: {"networks": {"default": {"ipv4_address": address}}, "extra_hosts": hosts}
        for name, address in addresses.items()
    }
    network = {"ipam": {"config": [{"subnet": "10.89.177.0/24"}]}}
    return json.dumps({"services": services, "networks": {"default": network}})


class Compose:
    """podman-compose with this repository's compose.yaml."""

    def __init__(self, podman: Podman, folder: Path, variables: Mapping[str, str]) -> None:
        self.podman = podman
        self.results = folder / "results"
        self._addresses = folder / "addresses.yaml"
        self._addresses.write_text(fixed_addresses(), encoding="utf-8")
        self._environment = {**podman.environment, **variables, "RESULTS_FOLDER": str(self.results)}

    def __call__(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run podman-compose to its end."""
        command = [sys.executable, "-m", "podman_compose", "--file=compose.yaml"]
        return subprocess.run(
            [*command, f"--file={self._addresses}", *words],
            cwd=ROOT,
            env={**self._environment, **variables},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )

    @contextmanager
    def shown(self, *options: str, **variables: str) -> Iterator[subprocess.CompletedProcess[str]]:
        """Give what `run --rm show` came to, and take everything down."""
        try:
            yield self(*options, "run", "-T", "--rm", "show", **variables)
        finally:
            down = self(*options, "down", "-v", **variables)
        assert down.returncode == 0, down.stderr
        for kind in ("container", "volume", "pod"):
            listed = self.podman(kind, "ls", "--quiet", *(["--all"] * (kind == "container")))
            assert listed == "", f"{kind}: {listed}"
        assert self.podman("network", "ls", "--format={{.Name}}") == "podman\n"

    def exit_codes(self) -> dict[str, str]:
        """Return the codes of the services that have ended."""
        listed = self.podman(
            "ps", "--all", "--filter=status=exited", "--format={{.Names}} {{.ExitCode}}"
        )
        lines = (line.split() for line in listed.splitlines())
        return {name.removeprefix("iterum_").removesuffix("_1"): code for name, code in lines}

    def queues(self) -> dict[str, int]:
        """Return how many messages are in each queue, unacknowledged ones too, but for those that are a connection's own."""
        columns = ("name", "messages", "exclusive")
        listed = self.podman(
            "exec", "iterum_broker_1", "rabbitmqctl", "--quiet", "list_queues", *columns
        )
        rows = (line.split() for line in listed.splitlines()[1:])
        return {name: int(messages) for name, messages, exclusive in rows if exclusive == "false"}

    def pictures_on(self, volume: str) -> list[str]:
        """Return the pictures that are on a volume."""
        mounted = self.podman("volume", "inspect", "--format={{.Mountpoint}}", f"iterum_{volume}")
        return [str(path) for path in Path(mounted.strip()).rglob("*.jpg")]


@pytest.fixture
def compose(
    podman: Podman,
    tmp_path: Path,
    rabbitmq: Process,  # first, so that it is under way beside the others
    image: str,
    store_image: str,
    examples_image: str,
    broker_image: str,
) -> Compose:
    images = {
        "SIDECAR_IMAGE": image,
        "BROKER_IMAGE": broker_image,
        "STORE_IMAGE": store_image,
        "STEP_IMAGE": examples_image,
    }
    return Compose(podman, tmp_path, images)


def expected(folder: str) -> set[str]:
    copies = ["", *(f"-{number}" for number in range(2, COPIES + 1))]
    return {f"{folder}/{stem}{copy}.jpg" for stem in PICTURES for copy in copies}


def results(compose: Compose) -> set[str]:
    return {
        str(path.relative_to(compose.results))
        for path in compose.results.rglob("*")
        if path.is_file()
    }


def test_a_step_of_our_client(compose: Compose) -> None:
    with compose.shown(SEED_COPIES=str(COPIES)) as run:
        assert run.returncode == 0, run.stdout + run.stderr
        assert f"{FRAGMENTS} fragments became {FRAGMENTS} files" in run.stdout
        assert compose.exit_codes() == {"step": "0", "sidecar": "0"}
        assert compose.queues() == {"local-to-step": 0, "local-results": 0, "local-lineage": 0}
        assert compose.pictures_on("step-volume") == []
    assert results(compose) == expected("thumbnails")
    with Image.open(compose.results / "thumbnails" / "cat-7.jpg") as picture:
        assert max(picture.size) == 240


def test_a_step_of_pyterum_behind_it(compose: Compose) -> None:
    with compose.shown(TWO_STEPS, SEED_COPIES=str(COPIES)) as run:
        assert run.returncode == 0, run.stdout + run.stderr
        assert f"{FRAGMENTS} fragments became {FRAGMENTS} files" in run.stdout
        rows = [line for line in run.stdout.splitlines() if line.startswith("edges/")]
        assert rows
        assert all(line.endswith("step, second-step") for line in rows)
        ended = ("step", "sidecar", "second-step", "second-sidecar")
        assert compose.exit_codes() == dict.fromkeys(ended, "0")
        assert set(compose.queues().values()) == {0}
        for volume in ("step-volume", "second-step-volume"):
            assert compose.pictures_on(volume) == []
    assert results(compose) == expected("edges")


def test_steps_and_files_of_ones_own(compose: Compose, tmp_path: Path) -> None:
    steps, texts = tmp_path / "steps", tmp_path / "texts"
    for folder, files in (
        (steps, {"picky.py": PICKY, "slow.py": SLOW}),
        (texts, {"1.txt": "one", "2.txt": "bad", "3.txt": "three"}),
    ):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    own = {
        "INPUT_FOLDER": str(texts),
        "STEP_FOLDER": str(steps),
        "STEP_FILE": "/step/picky.py",
        "SECOND_STEP_FOLDER": str(steps),
        "SECOND_STEP_FILE": "/step/slow.py",
    }
    with compose.shown(TWO_STEPS, **own) as run:
        assert run.returncode == 1, run.stdout + run.stderr
        assert "Dead letters: 1 of step" in run.stderr
        assert compose.queues()["local-to-step-dead-letter"] == 1
    assert results(compose) == {"together.txt"}
    assert (compose.results / "together.txt").read_text(encoding="utf-8") == "ONE THREE"
