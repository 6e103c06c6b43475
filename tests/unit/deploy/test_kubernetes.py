"""The manifests in `deploy/kubernetes`: what Kubernetes' own schemas say, that names meet, and that settings read every variable."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from iterum_sidecar.settings import Settings, read_settings
from iterum_sidecar.variables import CONTRACT, EXTENSIONS

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
FORMS = ["pod-classic", "job-classic", "job-native-sidecar", "deployment"]
HARDENED = FORMS[1:]
#: The first that knows native sidecars without being asked to, and the newest whose schemas are here.
VERSIONS = ["1.29", kubernetes_validate.latest_version()]
NAMES = {variable.name for variable in (*CONTRACT, *EXTENSIONS)}
EXAMPLE_SECRETS = {
    "broker-url": "amqp://iterum:a-password@rabbitmq:5672/",
    "access-key": "an-access-key",
    "secret-key": "a-secret-key",
}

Object = dict[str, Any]


@cache
def documents(name: str) -> list[Object]:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def pod_of(form: str) -> Object:
    """The pod's specification, whatever makes the pod."""
    (document,) = documents(form)
    spec: Object = document["spec"]
    return spec if document["kind"] == "Pod" else spec["template"]["spec"]


def container(form: str, name: str) -> Object:
    spec = pod_of(form)
    (found,) = (
        each
        for each in (*spec.get("initContainers", ()), *spec["containers"])
        if each["name"] == name
    )
    result: Object = found
    return result


@cache
def step_environment() -> dict[str, str]:
    lines = (FOLDER / "step.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def environment(form: str, name: str) -> dict[str, str]:
    """What the container is told: the ConfigMap's variables, and over them its own."""
    found = dict(step_environment()) if "envFrom" in container(form, name) else {}
    return found | {each["name"]: each["value"] for each in container(form, name).get("env", ())}


def settings(form: str, secrets: Path) -> Settings:
    """Read what the sidecar is told as it does, with its secrets in files of our own."""
    for key, value in EXAMPLE_SECRETS.items():
        (secrets / key).write_text(value, encoding="utf-8")
    told = environment(form, "sidecar")
    moved = {
        each: str(secrets / Path(value).name)
        for each, value in told.items()
        if each.endswith("_FILE")
    }
    return read_settings(told | moved)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("form", FORMS)
def test_kubernetes_takes_it(form: str, version: str) -> None:
    for document in documents(form):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_variable_is_one_that_settings_know(form: str) -> None:
    for name in ("sidecar", "transformation-step"):
        assert environment(form, name).keys() <= NAMES


@pytest.mark.parametrize("form", FORMS)
def test_the_sidecar_reads_what_it_is_told(form: str, tmp_path: Path) -> None:
    read = settings(form, tmp_path)
    serves = form == "deployment"
    assert (read.manager_url == "") == serves
    assert (read.http_address == (None, 8080)) == serves
    assert read.kill_on_error == (form != "job-native-sidecar")


@pytest.mark.parametrize("form", FORMS)
def test_both_containers_are_told_the_same_of_their_volume(form: str) -> None:
    ours, theirs = environment(form, "sidecar"), environment(form, "transformation-step")
    shared = ("DATA_VOLUME_PATH", "TRANSFORMATION_STEP_INPUT", "TRANSFORMATION_STEP_OUTPUT")
    assert [ours[name] for name in shared] == [theirs[name] for name in shared]
    assert theirs["ITERUM_CONFIG"] == ours["ITERUM_CONFIG"] != ""
    for name in ("sidecar", "transformation-step"):
        mounts = {each["mountPath"]: each["name"] for each in container(form, name)["volumeMounts"]}
        assert mounts[ours["DATA_VOLUME_PATH"]] == "data-volume"
        assert set(mounts.values()) <= {each["name"] for each in pod_of(form)["volumes"]}


@pytest.mark.parametrize("form", HARDENED)
def test_no_transformation_is_told_a_secret(form: str) -> None:
    step = container(form, "transformation-step")
    assert "secrets" not in {each["name"] for each in step["volumeMounts"]}
    assert not re.search("PASSWORD|SECRET|ACCESS_KEY|BROKER_URL", " ".join(step_environment()))


@pytest.mark.parametrize("form", HARDENED)
def test_it_may_do_no_more_than_it_needs(form: str) -> None:
    spec = pod_of(form)
    user = spec["securityContext"]
    assert user["runAsNonRoot"]
    assert user["runAsUser"] == user["fsGroup"] > 0
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    for name in ("sidecar", "transformation-step"):
        each = container(form, name)
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize("form", FORMS)
def test_a_drain_ends_before_the_grace_period(form: str, tmp_path: Path) -> None:
    grace = pod_of(form).get("terminationGracePeriodSeconds", 30)
    assert settings(form, tmp_path).drain_seconds + 5 <= grace


def test_the_native_sidecar_is_up_before_the_transformation_and_runs_on() -> None:
    (sidecar,) = pod_of("job-native-sidecar")["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["exec"]["command"][1:] == ["probe", "startup"]


def test_the_image_has_what_the_exec_probe_calls() -> None:
    command = container("job-native-sidecar", "sidecar")["startupProbe"]["exec"]["command"][0]
    recipe = (FOLDER.parents[1] / "Containerfile").read_text(encoding="utf-8")
    assert f'ENTRYPOINT ["{command}"]' in recipe


def test_the_http_probes_ask_where_the_sidecar_serves(tmp_path: Path) -> None:
    sidecar = container("deployment", "sidecar")
    (port,) = sidecar["ports"]
    assert settings("deployment", tmp_path).http_address == (None, port["containerPort"])
    for kind, path in (("startup", "/startup"), ("liveness", "/live"), ("readiness", "/ready")):
        assert sidecar[f"{kind}Probe"]["httpGet"] == {"path": path, "port": port["name"]}


# -- KEDA's and Kustomize's kinds, of which there are no schemas here


def test_keda_scales_the_deployment_by_its_own_queue() -> None:
    authentication, scaled = documents("keda-scaledobject")
    (deployment,) = documents("deployment")
    assert {authentication["apiVersion"], scaled["apiVersion"]} == {"keda.sh/v1alpha1"}
    assert (authentication["kind"], scaled["kind"]) == ("TriggerAuthentication", "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["type"] == "rabbitmq"
    assert (
        trigger["metadata"]["queueName"] == environment("deployment", "sidecar")["MQ_INPUT_QUEUE"]
    )
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    (host,) = authentication["spec"]["secretTargetRef"]
    assert (host["parameter"], host["name"]) == ("host", "iterum-step")
    assert host["key"] in EXAMPLE_SECRETS


def test_kustomize_makes_what_the_forms_name() -> None:
    (base,) = documents("kustomization")
    assert base["kind"] == "Kustomization"
    text = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    named = re.findall(r"^  (?:# )?- ([\w-]+\.yaml)$", text, re.MULTILINE)
    assert {"job-classic.yaml", "job-native-sidecar.yaml", "deployment.yaml"} < set(named)
    for name in (*named, *base["resources"], *base["configurations"]):
        assert (FOLDER / name).is_file()
    (config,) = base["configMapGenerator"]
    assert (FOLDER / config["envs"][0]).name == "step.env"
    (secret,) = base["secretGenerator"]
    keys = {literal.split("=", 1)[0] for literal in secret["literals"]}
    assert keys == EXAMPLE_SECRETS.keys()
    for form in HARDENED:
        sidecar = container(form, "sidecar")
        assert sidecar["envFrom"] == [{"configMapRef": {"name": config["name"]}}]
        (volume,) = (each for each in pod_of(form)["volumes"] if each["name"] == "secrets")
        assert volume["secret"]["secretName"] == secret["name"]
        files = [
            value for name, value in environment(form, "sidecar").items() if name.endswith("_FILE")
        ]
        assert {Path(file).name for file in files} == keys
        (mount,) = (each for each in sidecar["volumeMounts"] if each["name"] == "secrets")
        assert {str(Path(file).parent) for file in files} == {mount["mountPath"]}
    (image,) = base["images"]
    assert all(container(form, "sidecar")["image"] == image["name"] for form in FORMS)
