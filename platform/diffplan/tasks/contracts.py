"""The parts of a task that the stages use: behaviors for collection, policies for evaluation, metrics and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from diffplan.config import EnvConfig
from diffplan.types import Plan

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure


class Behavior(Protocol):
    """Acts in a batch of environments during collection.

    Actions in one environment must not depend on the others in the batch: all random numbers for environment i come
    from generator i, so an episode is the same in every batch.

    Where `collection.switch_steps` is set, a behavior is asked for actions at every step of every episode, also while
    another one acts. One that follows a plan of its own may have a method `take_over(observations, taken)`, with taken
    bool[num_envs]: called before `act` where it begins to act in the middle of an episode, so that it plans anew.
    """

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes in all environments, from observations float[num_envs, observation_dim]."""
        ...

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, action_dim] for the current observations."""
        ...

    def columns(self) -> dict[str, np.ndarray]:
        """Further columns of the last step, float[num_envs, size] or float[num_envs], such as the goal.

        Optional if there are none.
        """
        ...


@dataclass(frozen=True)
class BehaviorContext:
    """What a behavior may use to make its actions.

    Attributes:
        env: the environment.
        action_low: lower bounds of the actions, -inf for none.
        action_high: upper bounds of the actions, inf for none.
        action_noise: standard deviation of the noise of noisy behaviors.
        max_goal_steps: steps after which a goal is given up.
        switch_steps: mean steps after which another component of a mixture takes over; None: never.
    """

    env: EnvConfig
    action_low: np.ndarray
    action_high: np.ndarray
    action_noise: float
    max_goal_steps: int
    switch_steps: int | None = None


@dataclass(frozen=True)
class BehaviorPart:
    """A behavior of a task.

    Attributes:
        make: makes it; raises `ConfigError` for an environment that it cannot act in.
        columns: names and sizes of the columns that it adds to a dataset; size 0 for a single number.
    """

    make: Callable[[BehaviorContext], Behavior]
    columns: Mapping[str, int] = field(default_factory=dict)


class Policy(Protocol):
    """Acts in a batch of environments during evaluation.

    A policy that plans also has the attributes `num_plans`, int[num_envs], and `plan_seconds`, the total seconds spent
    on plans. If its plans are trajectories, `plans` holds a `Plan` for each environment.
    """

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes.

        Args:
            observations: float[num_envs, observation_dim].
            goals: float[num_envs, goal_dim]; None if episodes have no goal.
        """
        ...

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, action_dim] for the present observations."""
        ...


@dataclass(frozen=True)
class RolloutContext:
    """What a policy may use to act in a batch of episodes.

    Attributes:
        env: the environment under its protocol.
        seeds: a seed for each environment, independent of the one that the environment was reset with.
        generator: source of noise that is drawn for all environments at once.
        action_low: lower bounds of the actions, -inf for none.
        action_high: upper bounds of the actions, inf for none.
    """

    env: EnvConfig
    seeds: Sequence[int]
    generator: torch.Generator
    action_low: np.ndarray
    action_high: np.ndarray


MakePolicy = Callable[[RolloutContext], Policy]


@dataclass(frozen=True)
class Ask:
    """What the plans of a batch of episodes must satisfy and maximise.

    Attributes:
        goals: values of the goal columns at the end of plans, float[num_envs, goal_dim]; None for no goal.
        constraints: `diffplan.Fixed` and `diffplan.Bounds` on plans.
        guides: guides, expressions or import paths to maximise; those of the settings if there are none.
        stage: for episodes in stages, such as one block after another: what the next plans of some environments must
            satisfy, from their present observations float[num, observation_dim] and their numbers in the batch,
            int[num]. It is called before every plan. Its constraints, and its guides if it has any, are for these plans
            only, in place of those above; its goals, if it has any, replace the goals of these episodes.
    """

    goals: np.ndarray | None = None
    constraints: Sequence[Any] = ()
    guides: Sequence[Any] = ()
    stage: Callable[[np.ndarray, np.ndarray], Ask] | None = None


@dataclass(frozen=True)
class Symmetry:
    """A change of windows after which they are windows of the same environment, such as a turn about its axis.

    Attributes:
        num_draws: random numbers that the change of a window depends on.
        apply: (observations float32[windows, horizon, observation_dim], actions float32[windows, horizon, action_dim],
            draws float32[windows, num_draws], uniform in [0, 1)) -> changed observations and actions. All are tensors
            in environment units; windows of observations have actions without columns.
    """

    num_draws: int
    apply: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


Project = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(first observations, planned last ones), float[batch, observation_dim], -> the nearest possible last ones."""


class RecordedSteps(Protocol):
    """The steps of episodes that ran side by side; see `diffplan.evaluation.record.Record`."""

    lengths: np.ndarray
    """Steps of each episode, int[num_envs]."""
    observations: np.ndarray
    """float64[steps + 1, num_envs, observation_dim]; values after the end of an episode are undefined."""

    @property
    def returns(self) -> Any:
        """Undiscounted returns, float64[num_envs]."""
        ...

    @property
    def times_to_goal(self) -> Any:
        """Steps until the goal was first reached, int[num_envs]; -1 if it never was."""
        ...

    def path_lengths(self, columns: list[int]) -> np.ndarray:
        """Path length until the goal was first reached, or to the end of the episode, float64[num_envs]."""
        ...

    def count(self, holds: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Steps that led to an observation for which `holds` is true, int[num_envs]."""
        ...


@dataclass(frozen=True)
class FinishedEpisodes:
    """A batch of episodes that have ended, to be measured.

    Attributes:
        env: the environment under its protocol.
        steps: the recorded steps.
        starts: first observations, float[num_envs, observation_dim].
        goals: float[num_envs, goal_dim]; None if episodes have no goal.
        scores: normalised scores, float[num_envs]; returns if there are no reference returns.
    """

    env: EnvConfig
    steps: RecordedSteps
    starts: np.ndarray
    goals: np.ndarray | None
    scores: np.ndarray


@dataclass(frozen=True)
class Metric:
    """A number measured for each episode, by one task or for all tasks.

    Attributes:
        title: heading in tables.
        less_is_better: whether a search minimises it.
        format: format of its mean in tables, for `format()`.
    """

    title: str
    less_is_better: bool = False
    format: str = ".1f"


class Figures(Protocol):
    """Draws plans, rollouts and data of one environment."""

    words: FigureWords
    """Captions of the pictures."""

    def choose_problems(
        self, windows: np.ndarray, num: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Starts and goals for plans that are shown in pictures.

        Args:
            windows: windows of the data, float32[windows, horizon, observation_dim], to choose from.
            num: number of problems.
            generator: source of the choice.

        Returns:
            Observations float32[num, observation_dim] and goals float32[num, goal_dim], or None for no goals.
        """
        ...

    def draw_plans(self, plans: Sequence[Plan], goals: np.ndarray | None) -> Figure:
        """Plans side by side, with their goals float[plans, goal_dim]."""
        ...

    def draw_plan(self, observations: np.ndarray, goal: np.ndarray | None) -> Figure:
        """One plan, noisy or clean, float32[horizon, observation_dim], small."""
        ...

    def draw_rollout(
        self, plan: np.ndarray, stride: int, executed: np.ndarray, goal: np.ndarray | None, reached_step: int | None
    ) -> Figure:
        """The executed observations, float32[steps, observation_dim], over the first plan, with steps `stride` apart.

        The plan may be empty; `reached_step` is when the goal was first reached, None for never.
        """
        ...

    def draw_data(self, observations: np.ndarray) -> Figure:
        """The distribution of observations of the data, float[rows, observation_dim]."""
        ...


@dataclass(frozen=True)
class FigureWords:
    """Captions of a family's pictures.

    Attributes:
        plans: for the pictures of a plan during denoising.
        rollouts: for rollouts: the meaning of the lines.
        data: for the picture of the data.
        marks: legend of plans and rollouts: shape (`dot` or `star`), colour and meaning of each mark.
    """

    plans: str
    rollouts: str
    data: str
    marks: tuple[tuple[Literal["dot", "star"], str, str], ...] = ()


@dataclass(frozen=True)
class PublishedScore:
    """A score from the literature.

    Attributes:
        method: name of the method.
        source: where it was published.
        score: in the same units as our scores.
    """

    method: str
    source: str
    score: float
