"""Rules of replanning: when an environment gets a new plan, and whether it is made from noise or with a warm start.

* `NeverReplan` follows each plan to its end.
* `ReplanSooner` looks for a plan that arrives sooner, on a timer, and gives up plans that cannot be followed.
* `ReplanReceding` makes a new plan on a timer and always switches to it (receding-horizon control), from noise or with
  a warm start from the rest of the previous plan.

At the end of a plan the first two rules hold its last position, if it has a goal and the controller can hold. Without a
goal, with planned actions, and with `ReplanReceding`, a new plan is made.
"""

from __future__ import annotations

import numpy as np

from diffplan.config.planning import Never, Receding, Sooner
from diffplan.planning.control.episodes import Episodes

MIN_STEPS_BETWEEN_PLANS = 10
"""A plan is followed for at least this many environment steps before a deviation from it counts."""

MAX_WAIT_OF_PLANS = 20
"""Environment steps for which a plan pauses when the position lags behind. After that the position counts as blocked: a
robot that is only late catches up within a few steps."""

STRICTNESS_FACTOR = 0.8
"""Factor on the largest admitted speed error after a plan that could not be followed."""


class NeverReplan:
    """Follows each plan to its end. The base of the other rules.

    Args:
        episodes: the episodes to plan for.

    Attributes:
        waiting: environments that need a new plan, bool[num_envs].
    """

    def __init__(self, episodes: Episodes) -> None:
        self._episodes = episodes

    def reset(self, num_envs: int) -> None:
        """Start episodes, in which every environment has just got a plan."""
        self._ended = np.zeros(num_envs, dtype=bool)

    @property
    def waiting(self) -> np.ndarray:
        """Environments that need a new plan, bool[num_envs]."""
        return self._ended

    def find(self, observations: np.ndarray, envs: np.ndarray) -> None:
        """Find which of some environments need a new plan now.

        Args:
            observations: present observations of all environments, float[num_envs, observation_dim].
            envs: the environments to look at, int[num]; none of them is waiting.
        """
        if not self._holds:
            self._ended[envs] = self._episodes.controller.has_ended(envs)

    def replan(self, observations: np.ndarray) -> None:
        """Make new plans where environments are waiting for them."""
        if self._ended.any():
            self._episodes.plan(observations, np.flatnonzero(self._ended))
            self._ended[:] = False

    @property
    def _holds(self) -> bool:
        """Whether the last position of a plan is held at its end, rather than a new plan made."""
        return self._episodes.arrives and self._episodes.controller.can_hold


class ReplanSooner(NeverReplan):
    """Looks for plans that arrive sooner, and gives up plans that cannot be followed.

    Every `interval` steps a plan is made from noise, and followed if it arrives at the goal sooner than the present
    one. Without this condition a policy would never arrive, because each new plan takes at least the shortest horizon.
    Without a goal there is no arrival, so no sooner plan is searched for.

    A plan is replaced if the position is further than `max_deviation` from it, or if it has been paused for too long:
    something is in the way, such as a wall that the plan cuts. The plan was too bold, so the next one must keep a
    stricter limit of the speed error.

    Args:
        episodes: the episodes to plan for.
        settings: interval and deviation.
    """

    def __init__(self, episodes: Episodes, settings: Sooner) -> None:
        super().__init__(episodes)
        self._settings = settings

    def reset(self, num_envs: int) -> None:
        """Start episodes, in which every environment has just got a plan."""
        super().reset(num_envs)
        self._lost, self._due = np.zeros((2, num_envs), dtype=bool)

    @property
    def waiting(self) -> np.ndarray:
        """Environments that need a new plan, bool[num_envs]."""
        return self._ended | self._lost | self._due

    def find(self, observations: np.ndarray, envs: np.ndarray) -> None:
        """Find which of some environments need a new plan now; see `NeverReplan.find`."""
        super().find(observations, envs)
        episodes, settings = self._episodes, self._settings
        lost = episodes.controller.waited_env_steps(envs) >= MAX_WAIT_OF_PLANS
        if settings.max_deviation:
            lost |= episodes.controller.deviations(observations[envs], envs) > settings.max_deviation
        self._lost[envs] = lost & (episodes.steps_on_plan[envs] >= MIN_STEPS_BETWEEN_PLANS)
        if settings.interval and episodes.arrives:
            steps = episodes.env_steps[envs]
            self._due[envs] = (steps > 0) & (steps % settings.interval == 0)

    def replan(self, observations: np.ndarray) -> None:
        """Make new plans where environments are waiting for them."""
        episodes = self._episodes
        if self._lost.any():
            episodes.max_speed_errors[self._lost] *= STRICTNESS_FACTOR
        new = np.flatnonzero(self._lost | self._ended)
        if new.size:
            episodes.plan(observations, new)
        due = np.flatnonzero(self._due & (episodes.controller.remaining_env_steps() > 0))
        if due.size:
            episodes.plan_sooner(observations, due)
        self._lost[:] = self._due[:] = self._ended[:] = False


class ReplanReceding(NeverReplan):
    """Receding-horizon control: makes a new plan after every `interval` steps, or at the end of a plan.

    With a warm start the new plan starts from the rest of the present one; after the end of a plan it is made from
    noise. The rest of a plan to a goal gets shorter and keeps its time of arrival. Once it is shorter than the shortest
    plan that the model can make, it is followed to its end.

    Args:
        episodes: the episodes to plan for.
        settings: interval and warm start.
    """

    def __init__(self, episodes: Episodes, settings: Receding) -> None:
        super().__init__(episodes)
        self._settings = settings

    def reset(self, num_envs: int) -> None:
        """Start episodes, in which every environment has just got a plan."""
        super().reset(num_envs)
        self._due = np.zeros(num_envs, dtype=bool)

    @property
    def waiting(self) -> np.ndarray:
        """Environments that need a new plan, bool[num_envs]."""
        return self._ended | self._due

    def find(self, observations: np.ndarray, envs: np.ndarray) -> None:
        """Find which of some environments need a new plan now; see `NeverReplan.find`."""
        super().find(observations, envs)
        due = self._episodes.steps_on_plan[envs] >= self._settings.interval
        if self._settings.warm_start:
            due &= self._has_rest(envs)
        self._due[envs] = due

    def replan(self, observations: np.ndarray) -> None:
        """Make new plans where environments are waiting for them."""
        warm = self._due & ~self._ended if self._settings.warm_start else np.zeros_like(self._due)
        new = np.flatnonzero(self.waiting & ~warm)
        if new.size:
            self._episodes.plan(observations, new)
        if warm.any():
            self._episodes.plan_warm(observations, np.flatnonzero(warm), self._settings.warm_start)
        self._due[:] = self._ended[:] = False

    @property
    def _holds(self) -> bool:
        return False

    def _has_rest(self, envs: np.ndarray) -> np.ndarray:
        """Whether the plans of some environments have a rest for a warm start, bool[num]."""
        episodes = self._episodes
        if not episodes.arrives:
            return ~episodes.controller.has_ended(envs)
        strides = np.array([episodes.plans[i].stride for i in envs])
        lengths = np.array([episodes.plans[i].horizon - 1 for i in envs]) * strides
        left = lengths - episodes.controller.elapsed_env_steps()[envs]
        return left >= (episodes.shortest_horizon - 1) * strides


def make_rule(settings: Never | Sooner | Receding, episodes: Episodes) -> NeverReplan:
    """The rule that settings name."""
    if isinstance(settings, Sooner):
        return ReplanSooner(episodes, settings)
    if isinstance(settings, Receding):
        return ReplanReceding(episodes, settings)
    return NeverReplan(episodes)
