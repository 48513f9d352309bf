"""Rules of replanning: when an environment gets a new plan, and from where it starts.

What is done at the end of a plan is the same for all rules but the last: with a goal the controller holds the last
position, if it can; without a goal, and with planned actions, there is nothing to hold, so a new plan is made.

* `NeverReplan` follows each plan to its end.
* `ReplanSooner` looks for a plan that arrives sooner, on a timer, and gives up plans that cannot be followed.
* `ReplanReceding` plans again on a timer and always changes over (receding-horizon control), from scratch or from the
  rest of the plan before.
"""

from __future__ import annotations

import numpy as np

from diffplan.config.planning import Never, Receding, Sooner
from diffplan.planning.control.episodes import Episodes

MIN_STEPS_BETWEEN_PLANS = 10
"""A plan is followed for at least this many environment steps before a deviation from it counts."""

MAX_WAIT_OF_PLANS = 20
"""Environment steps that a plan pauses for a position that lags behind. After them the position counts as blocked; one
that is only late catches up within a few steps."""

STRICTNESS_FACTOR = 0.8
"""What a plan that could not be followed multiplies the speed error admitted in the next one by."""


class NeverReplan:
    """Follows each plan to its end. The base of the other rules.

    Args:
        episodes: what is planned for.

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
        """Whether the end of a plan is held, rather than replaced by a new plan."""
        return self._episodes.arrives and self._episodes.controller.can_hold


class ReplanSooner(NeverReplan):
    """Looks for plans that arrive sooner, and gives up plans that cannot be followed.

    Every `interval` steps a plan is made from scratch, and followed if it arrives at the goal sooner than the present
    one: without this condition a policy would never arrive, for each new plan takes at least the shortest horizon.
    Episodes without a goal arrive nowhere, so there nothing is looked for.

    A plan is given up for a new one where the position is further than `max_deviation` from it, or where it has long
    been paused for the position: something (a wall that it cuts, a push) is in the way. It was too bold, so the next
    plan must be more consistent than it had to be.

    Args:
        episodes: what is planned for.
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
    """Plans again after every `interval` steps on a plan, or when the plan has ended, and always changes over.

    With a warm start the new plan starts from the rest of the present one, as long as there is such a rest: one that
    has ended is followed by a plan from scratch. The rest of a plan to a goal gets shorter, and still arrives when it
    was to; once it is shorter than any plan that the model can make, it is followed to its end.

    Args:
        episodes: what is planned for.
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
        """Whether something is left of the plans of some environments that a new plan can start from, bool[num]."""
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
