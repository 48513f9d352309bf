"""All private parts of Ray that we use; no other file imports them.

They may change with any version of Ray, so `pyproject.toml` pins one. After an upgrade,
`tests/cluster/test_ray_private.py` names each part that is gone or changed, and our code that uses it.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray._private.node import Node
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
from ray._private.state import state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.callback import RayTrainCallback

__all__ = [
    "WORKER_GROUP_START_TIMEOUT_S_ENV_VAR",
    "DefaultFailurePolicy",
    "ElasticScalingPolicy",
    "FailureDecision",
    "FixedScalingPolicy",
    "PlacementGroupCleanerCallback",
    "RayTrainCallback",
    "ScalingDecision",
    "ScalingPolicy",
    "TrainController",
    "WorkerGroup",
    "get_draining_nodes",
    "is_autoscaler_v2",
    "make_exclusion",
    "read_autoscaler_status",
    "stop_node_of",
    "walk_upload",
]


def stop_node_of(error: BaseException) -> None:
    """End the processes of a node whose start failed with this error; Ray keeps them until our process ends."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False)
            return


def get_draining_nodes() -> set[str]:
    """Ids of the nodes whose removal the cloud or the autoscaler has announced."""
    return set(state.get_draining_nodes())


def read_autoscaler_status() -> dict[str, Any]:
    """The last report of the first version of the autoscaler; empty if there is none."""
    return json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")


def make_exclusion(root: Path, patterns: Sequence[str]) -> Callable[[Path], bool]:
    """Whether Ray leaves a path under a directory out of an upload, by patterns as in .gitignore."""
    return _get_excludes(root, list(patterns))


def walk_upload(
    root: Path, patterns: Sequence[str], visit: Callable[[Path], object], skip: Callable[[Path], bool]
) -> None:
    """Visit the files and directories that Ray would upload: all that no pattern, .gitignore or .rayignore excludes.

    Args:
        root: the directory.
        patterns: what is excluded.
        visit: called for each path before those below it.
        skip: whether a path is left out for another reason.
    """
    use_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"  # as Ray does
    quiet = logging.Logger("diffplan.upload", logging.CRITICAL)
    excluded = [skip, make_exclusion(root, patterns)]
    _dir_travel(root, excluded, visit, include_gitignore=use_gitignore, logger=quiet)
