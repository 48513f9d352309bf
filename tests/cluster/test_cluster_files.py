"""The files that describe clusters: they name our versions, and what is asked of them holds."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from diffplan.cli.submit import check_places, take_options
from diffplan.cluster.ray_private import make_exclusion
from diffplan.cluster.runtime import ROLLOUT_POOL

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
(RAY_VERSION,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
RAY_IMAGE = f"rayproject/ray:{RAY_VERSION}-py311-gpu"
OUR_IMAGE = f"registry.example.com/diffplan:{PROJECT['version']}"
LOCAL = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def launched() -> dict[str, Any]:
    """cluster.yaml."""
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def read_manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docs/kuberay" / name).read_text())


def get_cluster_specs() -> list[dict[str, Any]]:
    return [read_manifest("raycluster.yaml")["spec"], read_manifest("rayjob.yaml")["spec"]["rayClusterSpec"]]


def test_the_cluster_launcher_takes_the_cluster(launched: dict[str, Any]) -> None:
    validate_config(prepare_config(launched))
    kinds = launched["available_node_types"]
    assert kinds[launched["head_node_type"]]["resources"] == {"CPU": 0}
    assert kinds["rollout"]["labels"] == {"pool": ROLLOUT_POOL}
    assert kinds["rollout"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert kinds["training"]["resources"]["GPU"] == 1
    assert {kinds[name]["min_workers"] for name in ("rollout", "training")} == {0}
    (start,) = [command for command in launched["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    for command in [start, *launched["worker_start_ray_commands"][1:]]:
        assert command.startswith("RAY_AUTH_MODE=token ")


def test_the_on_premises_variant_is_one_that_the_launcher_takes() -> None:
    (text,) = LOCAL.findall((ROOT / "docs/cluster.md").read_text())
    config = yaml.safe_load(text)
    assert config["provider"]["type"] == "local"
    validate_config(prepare_config(config))
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])
    assert config["docker"]["image"] == RAY_IMAGE


def test_versions_are_ours(launched: dict[str, Any]) -> None:
    assert launched["docker"]["image"] == RAY_IMAGE
    assert f"FROM {RAY_IMAGE}\n" in (ROOT / "docs/kuberay/Dockerfile").read_text()
    assert f"-t {OUR_IMAGE} " in (ROOT / "docs/kuberay/Dockerfile").read_text()
    (wanted,) = [each for each in PROJECT["dependencies"] if each.startswith("ray[")]
    assert ">=" + RAY_VERSION.rpartition(".")[0] in wanted
    assert PROJECT["requires-python"] == ">=3.11"  # that of the image
    for spec in get_cluster_specs():
        assert spec["rayVersion"] == RAY_VERSION
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            assert container["image"] == OUR_IMAGE


def test_all_code_and_no_data_is_copied_to_the_nodes(launched: dict[str, Any]) -> None:
    """rsync's patterns mean here what those of .gitignore mean."""
    patterns = launched["rsync_exclude"]
    is_excluded = make_exclusion(ROOT, patterns)
    kept = [path for name in ("platform", "envs", "jobs") for path in (ROOT / name).rglob("*.py")]
    assert not [path for path in [*kept, ROOT / "pyproject.toml", ROOT / "constraints.txt"] if is_excluded(path)]
    for name in ("data/umaze/_dataset.json", "runs/latest", "models/a", ".git/HEAD", ".venv/bin/python"):
        assert is_excluded(ROOT / name), name
    for pattern in patterns:
        assert pattern.startswith(("/", "**/")), pattern  # others would match packages of the same name


def test_manifests_have_what_the_operator_asks_for() -> None:
    cluster, job = read_manifest("raycluster.yaml"), read_manifest("rayjob.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert get_cluster_specs()[0] == get_cluster_specs()[1]
    for spec in get_cluster_specs():
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        assert groups["rollout"]["labels"] == {"pool": ROLLOUT_POOL}
        for group in (spec["headGroupSpec"], *groups.values()):
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            assert "labels" not in group["rayStartParams"]  # the operator refuses them there
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["resources"]["limits"] == container["resources"]["requests"]
            mounted = [mount["name"] for mount in container["volumeMounts"]]
            assert mounted == [volume["name"] for volume in pod["volumes"]] == ["shared"]
        for group in groups.values():
            assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        (container,) = groups["training"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("document", ["README.md", "docs/cluster.md"])
def test_commands_of_the_documents_could_be_submitted(document: str) -> None:
    lines = [line for line in (ROOT / document).read_text().splitlines() if line.startswith("diffplan submit ")]
    assert lines
    for line in lines:
        arguments = shlex.split(line.replace("$PWD", str(ROOT)), comments=True)[2:]
        _, (command, *rest) = take_options(arguments)
        check_places(command, rest)


def test_the_entrypoint_of_the_job_is_a_command_of_ours() -> None:
    program, command, *arguments = shlex.split(read_manifest("rayjob.yaml")["spec"]["entrypoint"])
    assert program in PROJECT["scripts"]
    check_places(command, arguments)
    assert "--resume" in arguments  # for retries
    for mount in get_cluster_specs()[1]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]:
        assert arguments[arguments.index("--out") + 1].startswith(mount["mountPath"])
