"""Shared planners: one on each GPU, which plans for the environments of many actors.

An actor that runs environments has no GPU. It calls a planner through a `RemotePlanner`, which a policy uses like the
planner itself. A request carries the state of its random generator, and the reply the state afterwards. So a planner
has no state: requests can be repeated after it died, and the noise in a plan does not depend on other requests. Each
actor has at most one request in flight, so there are never more requests than actors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from diffplan.cluster.metrics import count_work
from diffplan.cluster.runtime import count_gpus
from diffplan.cluster.units import unwrap
from diffplan.config import Config, PlanningConfig
from diffplan.errors import ClusterError
from diffplan.networks.gathering import GatheringNetwork
from diffplan.planning.planner import Planner
from diffplan.types import Plan

MAX_REQUESTS_AT_ONCE = 32
"""Requests that a planner works on at the same time, with their denoising steps in shared batches; others queue."""
MAX_RESTARTS = 5
"""Restarts of a planner before it is given up."""

LoadPlanner = Callable[[str], Planner]
"""Loads a planner onto a device; see `diffplan.planning.loading.load_planner`."""


@ray.remote(num_cpus=1)
class PlannerActor:
    """A planner that is loaded once, on its GPU if it has one, and plans for many actors."""

    def __init__(self, load: LoadPlanner) -> None:
        torch.set_num_threads(1)
        self._planner = load("cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")
        self._planner.model.denoiser.network = GatheringNetwork(self._planner.model.denoiser.network)

    def describe(self) -> tuple[Config, PlanningConfig, Any]:
        """The attributes of the planner that a policy needs: config, settings and inverse dynamics."""
        return self._planner.config, self._planner.settings, self._planner.inverse_dynamics

    def call(
        self, method: str, arguments: tuple[Any, ...], generator_state: torch.Tensor, named: dict[str, Any]
    ) -> tuple[list[Any], torch.Tensor]:
        """Plan by a method of the planner.

        Args:
            method: `plan`, `plan_within` or `replan`.
            arguments: arguments before the generator.
            generator_state: state of the generator that the noise comes from.
            named: keyword arguments after it.

        Returns:
            The result of the method, and the state of the generator afterwards.
        """
        generator = torch.Generator()
        generator.set_state(generator_state)
        plans = getattr(self._planner, method)(*arguments, generator, **named)
        count_work("evaluate", "plans", sum(plan is not None for plan in plans))
        return plans, generator.get_state()


class RemotePlanner:
    """A planner in another process, for use in a policy like a `Planner`.

    Args:
        actor: a `PlannerActor`.

    Attributes:
        config: the experiment that its model was trained in.
        settings: how it plans.
        inverse_dynamics: (observations, next observations) -> actions; None if it has none.

    Raises:
        ClusterError: the planner died, and so did its replacements.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.config, self.settings, self.inverse_dynamics = self._get(actor.describe.remote())

    def plan(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        **wanted: Any,
    ) -> list[Plan]:
        """Plan; see `Planner.plan`."""
        return self._call("plan", (observations, goals), generator, **wanted)

    def plan_within(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        max_horizons: np.ndarray,
        **wanted: Any,
    ) -> list[Plan | None]:
        """Plan with at most given horizons; see `Planner.plan_within`."""
        return self._call("plan_within", (observations, goals), generator, max_horizons=max_horizons, **wanted)

    def replan(
        self,
        previous: Sequence[Plan],
        elapsed_env_steps: np.ndarray,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        **wanted: Any,
    ) -> list[Plan]:
        """Replan with a warm start; see `Planner.replan`."""
        return self._call("replan", (previous, elapsed_env_steps, observations, goals), generator, **wanted)

    def _call(self, method: str, arguments: tuple[Any, ...], generator: torch.Generator, **named: Any) -> list[Any]:
        plans, state = self._get(self._actor.call.remote(method, arguments, generator.get_state(), named))
        generator.set_state(state.clone())  # arrays from Ray are read-only
        return plans

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except RayActorError as error:
            raise ClusterError(
                f"planner: it died {MAX_RESTARTS + 1} times, or could not be made; the last said: "
                f"{str(error).strip().splitlines()[-1].strip()}"
            ) from None
        except RayTaskError as error:
            raise unwrap(error) from None


def count_planners(num_planners: int | None) -> int:
    """The number of planners asked for, or one for each GPU of the cluster."""
    return count_gpus() if num_planners is None else num_planners


def spawn_planners(load: LoadPlanner, num_planners: int) -> list[Any]:
    """Planners, each on its own GPU, or on an equal share of one if there are more planners than GPUs.

    Args:
        load: loads the planner.
        num_planners: number of planners. In a cluster without GPUs each has a CPU.
    """
    num_gpus = count_gpus()
    share = num_gpus and 1 / max(-(-num_planners // num_gpus), 1)
    make = PlannerActor.options(
        num_gpus=share, max_restarts=MAX_RESTARTS, max_task_retries=-1, max_concurrency=MAX_REQUESTS_AT_ONCE
    )
    return [make.remote(load) for _ in range(num_planners)]
