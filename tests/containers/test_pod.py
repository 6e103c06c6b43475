"""A pod from its start to its end: the manifests of `deploy/kubernetes`, played by podman beside RabbitMQ, an S3 server and pyterum."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.contents import content
from testbed.object_stores import ObjectStore, running_rclone
from testbed.podman import PAUSE_IMAGE, Podman
from testbed.process import wait_until
from testbed.rabbitmq import RabbitMQ, running_rabbitmq
from tests.wire.checks import Outcome, check_mirrored
from tests.wire.journey import STEPS, Journey, journey_of

from .pods import SIDECAR, STEP, Pod, manifest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = Path("/dev/shm")
TERMINATED = 143
PROGRAM = "/opt/iterum-sidecar/bin/iterum-sidecar"
#: In `GRACE` seconds a pod has to be gone; what is drained here needs one.
GRACE = 30
PAUSE_RECIPE = """\
FROM {base}
STOPSIGNAL SIGKILL
ENTRYPOINT ["/usr/bin/python3", "-c", "import signal; signal.pause()"]
"""
STEP_RECIPE = """\
FROM {base}
COPY wheels /wheels
RUN ["python3", "-m", "venv", "/opt/step"]
RUN ["/opt/step/bin/python3", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links=/wheels", "pyterum"]
COPY steps /steps
"""


def build(podman: Podman, name: str, recipe: str, folder: Path) -> str:
    (folder / "Containerfile").write_text(recipe, encoding="utf-8")
    podman("build", "--quiet", "--network=none", f"--tag={name}", str(folder))
    return name


@pytest.fixture(scope="module")
def step_image(podman: Podman, base_image: str) -> str:
    """The real pyterum, with the steps of `tests/wire`. Its wheel is made outside, as there is no network in a build."""
    folder = podman.directory / "step"
    shutil.copytree(STEPS, folder / "steps")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    wheel += ["--no-deps", f"--wheel-dir={folder / 'wheels'}", "pyterum==0.6.6"]
    subprocess.run(wheel, check=True, capture_output=True, timeout=120)
    return build(podman, "localhost/step", STEP_RECIPE.format(base=base_image), folder)


@pytest.fixture(scope="module")
def images(podman: Podman, base_image: str, image: str, step_image: str) -> dict[str, str]:
    """The image of each container, with podman's own for a pod beside them."""
    folder = podman.directory / "pause"
    folder.mkdir()
    build(podman, PAUSE_IMAGE, PAUSE_RECIPE.format(base=base_image), folder)
    return {SIDECAR: image, STEP: step_image}


@pytest.fixture(scope="module")
def services() -> Iterator[tuple[RabbitMQ, ObjectStore]]:
    """A broker and a store in processes of the host, whose network the pods share."""
    directory = Path(tempfile.mkdtemp(prefix="pods-", dir=MEMORY if MEMORY.is_dir() else None))
    directory.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        broker = stack.enter_context(running_rabbitmq(directory / "rabbitmq"))
        yield broker, stack.enter_context(running_rclone(directory / "rclone"))


class Cluster:
    """One step of a pipeline, the pods that are made for it one after the other, and what came of them."""

    def __init__(self, podman: Podman, journey: Journey, images: dict[str, str]) -> None:
        self.podman = podman
        self.journey = journey
        self.images = images
        self.pods: list[Pod] = []

    def pod(self, form: str, *command: object, start: bool = True) -> Pod:
        """Make the step's next pod; its transformation runs a program of `tests/wire/steps`."""
        journey = self.journey
        told = journey.step.sidecar_environment(
            journey.broker, journey.store, manager_url=journey.manager.url, prefetch=20
        )
        for name in ("DATA_VOLUME_PATH", "TRANSFORMATION_STEP_INPUT", "TRANSFORMATION_STEP_OUTPUT"):
            del told[name]  # what the manifest says
        program, *arguments = map(str, command)
        documents = manifest_of(
            form,
            images=self.images,
            command=["/opt/step/bin/python3", f"/steps/{program}.py", *arguments],
            told=told,
            volume=journey.step.volume.parent.name,
            secrets=journey.directory / "secrets",
        )
        pod = Pod(self.podman, documents, start=start)
        self.pods.append(pod)
        return pod

    def pod_in_order(self, form: str, *command: object) -> Pod:
        """Make a pod whose transformation is started when the sidecar listens: pyterum tries again only after 5 s."""
        pod = self.pod(form, *command, start=False)
        pod.start(SIDECAR)
        self.wait_for_sockets()
        pod.start(STEP)
        return pod

    def wait_for_sockets(self) -> None:
        sockets = [self.journey.step.volume / name for name in ("tts.sock", "fts.sock")]
        wait_until(
            lambda: all(each.is_socket() for each in sockets), seconds=20, what="the sockets"
        )

    def wait_for_outputs(self, count: int) -> None:
        journey = self.journey
        wait_until(
            lambda: journey.queues.count(journey.step.output_queue) >= count,
            seconds=40,
            what=f"{count} outputs",
        )

    def wait_for_stumble(self) -> None:
        mark = self.journey.step.volume / "output" / "stumbled"
        wait_until(mark.exists, seconds=20, what="the step to stop at a fragment")

    def seed(self, count: int) -> None:
        for number in range(count):
            self.journey.seed({"a": content(number, 100)}, directly=True)
        self.journey.queue_inputs()

    def outcome(self) -> Outcome:
        """Every input has led to exactly one output, and nothing is left in the queue or on the volume."""
        outcome = self.journey.outcome()
        check_mirrored(outcome, self.journey.contents, self.journey.store)
        return outcome


def check_ended(pod: Pod, *, sidecar: int = 0, step: int = 0) -> None:
    codes = {name: pod.wait(name) for name in (SIDECAR, STEP)}
    assert codes == {SIDECAR: sidecar, STEP: step}, pod.log(SIDECAR)


@pytest.fixture
def cluster(
    podman: Podman,
    images: dict[str, str],
    services: tuple[RabbitMQ, ObjectStore],
    tmp_path: Path,
) -> Iterator[Cluster]:
    """A step whose pods' volume is looked at where podman keeps it."""
    name = f"v{os.urandom(4).hex()}"
    volume = podman.directory / "storage" / "volumes" / name / "_data"
    with journey_of(*services, volume, tmp_path) as journey:
        cluster = Cluster(podman, journey, images)
        try:
            yield cluster
        finally:
            for pod in cluster.pods:
                pod.remove()


@pytest.mark.parametrize("first", [SIDECAR, STEP])
def test_a_pod_as_the_manager_makes_it_does_its_work_and_ends(cluster: Cluster, first: str) -> None:
    """Whichever of its containers is started first."""
    cluster.seed(200)
    pod = cluster.pod("pod-classic", "mirror", start=False)
    pod.start(first)
    if first == SIDECAR:
        cluster.wait_for_sockets()
    pod.start(STEP if first == SIDECAR else SIDECAR)
    check_ended(pod)
    cluster.outcome()


def test_both_containers_as_one_user_without_rights_on_a_root_that_is_read_only(
    cluster: Cluster,
) -> None:
    cluster.seed(200)
    pod = cluster.pod_in_order("job-classic", "mirror")
    check_ended(pod)
    cluster.outcome()


@pytest.mark.parametrize(
    ("form", "whom"), [("pod-classic", None), ("job-classic", SIDECAR)], ids=["pod", "sidecar"]
)
def test_a_stop_in_the_middle_is_drained_and_the_next_pod_does_the_rest(
    cluster: Cluster, form: str, whom: str | None
) -> None:
    cluster.seed(300)
    pod = cluster.pod_in_order(form, "mirror", 0.005)
    cluster.wait_for_outputs(50)
    pod.stop(whom, seconds=GRACE)
    # pyterum is process 1, has no handler, and so ends by the kill message and not by the signal.
    check_ended(pod, sidecar=TERMINATED)
    assert cluster.journey.leftovers() == []
    assert 0 < cluster.journey.queues.count(cluster.journey.step.input_queue) < 250
    pod.remove()
    cluster.pods.remove(pod)
    check_ended(cluster.pod_in_order(form, "mirror"))
    cluster.outcome()


def test_a_transformation_that_is_killed_is_started_again_and_goes_on(cluster: Cluster) -> None:
    cluster.seed(200)
    pod = cluster.pod_in_order("job-native-sidecar", "stumble", 100)
    cluster.wait_for_stumble()
    os.kill(pod.state(STEP)["Pid"], signal.SIGKILL)
    assert pod.wait(STEP) == 0
    assert pod.state(STEP)["RestartCount"] == 1
    assert pod.wait(SIDECAR) == 0
    assert '"struck":1' in pod.log(SIDECAR)
    cluster.outcome()


# -- as a native sidecar: the transformation ends first, and then the sidecar is told to stop


def test_a_last_batch_is_stored_and_published_after_the_transformation_has_ended(
    cluster: Cluster,
) -> None:
    """The broker takes no messages until the sidecar has been told to stop, so all is still to be done by then."""
    journey = cluster.journey
    journey.manager.finished = False
    for number in range(4):
        journey.seed({"a": content(number, 100)}, directly=True)
    journey.queue_inputs()
    pod = cluster.pod_in_order("job-native-sidecar", "gather", 1000)
    pod.wait_for_line(SIDECAR, '"depth":4')
    for question in ("startup", "live", "ready"):
        pod.execute(SIDECAR, PROGRAM, "probe", question)
    journey.broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        journey.manager.finished = True
        assert pod.wait(STEP) == 0
        pod.signal(SIDECAR, "TERM")
        pod.wait_for_line(SIDECAR, '"draining".*"in_flight":4')
        assert pod.state(SIDECAR)["Running"]
    finally:
        journey.broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert pod.wait(SIDECAR, seconds=GRACE) == 0
    (output,) = journey.outcome().outputs
    assert sorted(output.predecessors) == sorted(journey.inputs)


def test_a_sidecar_that_is_started_again_goes_on_with_the_same_transformation(
    cluster: Cluster,
) -> None:
    """As when its probe fails, or its image changes: the transformation must not take that for the end."""
    cluster.seed(300)
    pod = cluster.pod_in_order("job-native-sidecar", "mirror", 0.005)
    cluster.wait_for_outputs(50)
    pod.stop(SIDECAR, seconds=GRACE)
    assert pod.wait(SIDECAR) == TERMINATED
    assert pod.state(STEP)["Running"]
    pod.start(SIDECAR)
    check_ended(pod)
    cluster.outcome()
