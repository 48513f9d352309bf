"""What an upgrade of Ray broke: one test for each thing without a public name that we use.

A failure names the thing and what of ours leans on it. Nothing is imported through `diffplan.cluster`: the import would
end there, at the first name that is missing.
"""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]
TRAIN = "ray.train.v2._internal"
POLICY = f"{TRAIN}.execution.scaling_policy"
COORDINATOR = "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator"
EVEN = "elastic training starts with as many workers as fit (elastic._EvenShares)"
RESERVED = "a resumed run takes over the reservation of its driver that was killed (elastic._OneReservation)"
TIDY = "workers that die while they start leave no places taken (elastic._TidyWorkerGroup)"
IN_A_ROW = "a run gives up after failures in a row, not after some in all (elastic._FailuresInARow)"
FAILED = "a start that failed leaves no processes beside the next one (start.start_ray)"
POLICIES = "our policies reach Ray's controller (elastic.RunTrainer)"
DRAINING = "training saves before its node is taken away (runtime.find_draining_nodes)"
ROOM = "`diffplan submit` asks whether a node has so many CPUs and GPUs (job_server.JobServer)"
UPLOAD = "`diffplan submit` counts what would be uploaded (submit.check_upload)"
GROWTH = "a job waits for nodes only where the cluster adds some (runtime.may_grow)"

NAMES = {
    "ray._private.state:state.get_draining_nodes": DRAINING,
    "ray._private.node:Node.kill_all_processes": FAILED,
    "ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS": GROWTH,
    "ray.autoscaler.v2.utils:is_autoscaler_v2": GROWTH,
    "ray.experimental.internal_kv:_internal_kv_get": GROWTH,
    "ray._private.runtime_env.packaging:_dir_travel": UPLOAD,
    "ray._private.runtime_env.packaging:_get_excludes": UPLOAD,
    "ray.autoscaler._private.util:prepare_config": "cluster.yaml is checked (test_cluster_files)",
    "ray.autoscaler._private.util:validate_config": "cluster.yaml is checked (test_cluster_files)",
    "ray.job_submission:JobSubmissionClient._do_request": ROOM,
    "ray.actor:ActorHandle._actor_id": "the throughput of each actor is told (units.run_units)",
    "ray.rllib.offline.offline_prelearner:SCHEMA": "datasets are exported for RLlib (test_rllib_offline)",
    "ray.train.torch:TorchTrainer._create_default_callbacks": "a run ends without 12 s of waiting (elastic.RunTrainer)",
    "ray.train.torch:TorchTrainer._initialize_and_run_controller": POLICIES,
    f"{TRAIN}.callbacks.placement_group_callback:PlacementGroupCleanerCallback": "as _create_default_callbacks",
    f"{TRAIN}.constants:WORKER_GROUP_START_TIMEOUT_S_ENV_VAR": EVEN,
    f"{TRAIN}.execution.controller:TrainController.worker_group_cls": TIDY,
    f"{TRAIN}.execution.worker_group:WorkerGroup._start": TIDY,
    f"{TRAIN}.execution.worker_group:WorkerGroup._clear_state": TIDY,
    f"{TRAIN}.execution.failure_handling:FailureDecision.RETRY": IN_A_ROW,
    f"{TRAIN}.execution.failure_handling:FailureDecision.RAISE": IN_A_ROW,
    f"{TRAIN}.execution.failure_handling.default:DefaultFailurePolicy.make_decision": IN_A_ROW,
    f"{POLICY}:ScalingDecision": EVEN,
    f"{POLICY}:FixedScalingPolicy": RESERVED,
    f"{POLICY}:ScalingPolicy.after_controller_start": RESERVED,
    f"{POLICY}:ElasticScalingPolicy._count_possible_workers": EVEN,
    f"{POLICY}:ElasticScalingPolicy._maybe_send_resource_request": EVEN,
    f"{POLICY}:ElasticScalingPolicy._autoscaling_coordinator": EVEN,
    f"{POLICY}:ElasticScalingPolicy.make_decision_for_non_running_worker_group": EVEN,
    "ray.train.v2.api.callback:RayTrainCallback": "as _create_default_callbacks",
}
"""Things by module and name, and what leans on each."""

MENTIONS = {
    (f"{TRAIN}.execution.worker_group:WorkerGroup", "self._worker_group_state"): TIDY,
    (f"{TRAIN}.execution.controller:TrainController", "self.worker_group_cls"): TIDY,
    (f"{TRAIN}.execution.failure_handling.default:DefaultFailurePolicy", "self._worker_group_failures"): IN_A_ROW,
    (f"{POLICY}:ScalingPolicy", "train_run_context.run_id"): RESERVED,
    (f"{POLICY}:ScalingPolicy", "self._requester_id"): RESERVED,
    (f"{POLICY}:ElasticScalingPolicy", "self._latest_reserved_resources_query_time"): EVEN,
    (f"{POLICY}:ElasticScalingPolicy", "self._latest_reserved_resources"): EVEN,
    (
        "ray.train.torch:TorchTrainer._initialize_and_run_controller",
        "controller",
    ): "our policies reach Ray's controller",
    (
        "ray.rllib.algorithms.algorithm_config:AlgorithmConfig",
        "_validate_config",
    ): "IQL takes a beta above 1 (offline_rl)",
}
"""What the source of a thing must mention: attributes that it sets or asks for itself."""

ARGUMENTS = {
    "ray._private.runtime_env.packaging:_dir_travel": (
        ["path", "excludes", "handler", "include_gitignore", "logger"],
        UPLOAD,
    ),
    "ray._private.runtime_env.packaging:_get_excludes": (["path", "excludes"], UPLOAD),
    "ray.experimental.internal_kv:_internal_kv_get": (["key"], GROWTH),
    f"{POLICY}:ElasticScalingPolicy._count_possible_workers": (["self", "reserved_resources"], EVEN),
    f"{COORDINATOR}:_AutoscalingCoordinatorActor.get_reserved_resources": (["self", "requester_id", "recompute"], EVEN),
    f"{TRAIN}.execution.failure_handling.default:DefaultFailurePolicy.make_decision": (
        ["self", "training_failed_error"],
        IN_A_ROW,
    ),
}
"""The first arguments of functions that we call or override."""


def find(thing: str, use: str) -> object:
    """A thing by its module and dotted name; fails with what leans on it."""
    module, _, name = thing.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"Ray {ray.__version__} has no {thing} ({error}). What leans on it: {use}")
    return found


@pytest.mark.parametrize("thing", NAMES)
def test_ray_still_has(thing: str) -> None:
    find(thing, NAMES[thing])


@pytest.mark.parametrize(("thing", "text"), MENTIONS)
def test_ray_still_mentions(thing: str, text: str) -> None:
    use = MENTIONS[thing, text]
    source = inspect.getsource(find(thing, use))  # type: ignore[arg-type]
    assert text in source, f"{thing} of Ray {ray.__version__} does not mention {text} any more. What leans on it: {use}"


@pytest.mark.parametrize("thing", ARGUMENTS)
def test_ray_still_takes(thing: str) -> None:
    expected, use = ARGUMENTS[thing]
    got = list(inspect.signature(find(thing, use)).parameters)  # type: ignore[arg-type]
    assert got[: len(expected)] == expected, f"{thing} of Ray {ray.__version__} takes {got}. What leans on it: {use}"


def is_private(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "ray" and (
        any(part.startswith("_") for part in parts)
        or parts[1:2] in (["autoscaler"], ["experimental"], ["dashboard"])
        or parts[1:3] == ["train", "v2"]
    )


def test_only_one_file_imports_what_is_private() -> None:
    found = set()
    for path in [
        *(ROOT / "platform").rglob("*.py"),
        *(ROOT / "jobs").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if any(is_private(module) for module in modules):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"platform/diffplan/cluster/ray_private.py"}
