"""The contract of a task.

Every part has a default, so an empty task works for any Gymnasium environment with Box spaces: episodes are scored by
their return, have goals only if the observations contain them, are collected by random actions and drawn as curves.
Parts that need heavy imports are functions that import when they are called, so that listing tasks stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplan.config import Config, EnvConfig
from diffplan.config.study import Study
from diffplan.layout import Layout

if TYPE_CHECKING:
    import numpy as np

    from diffplan.tasks.contracts import (
        Ask,
        BehaviorPart,
        Figures,
        FinishedEpisodes,
        MakePolicy,
        Metric,
        Project,
        PublishedScore,
        Symmetry,
    )
    from diffplan.tasks.table import Table


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A complete experiment, and the sizes of its environment.

    The sizes are here so that a preset can be inspected without making its environment or opening its data.

    Attributes:
        config: the experiment.
        observation_dim: size of an observation; None if it is only known from the environment or the data.
        action_dim: size of an action; None likewise.
    """

    config: Config
    observation_dim: int | None = None
    action_dim: int | None = None

    @property
    def layout(self) -> Layout | None:
        """Columns of a transition; None if the sizes are not known."""
        if self.observation_dim is None or self.action_dim is None:
            return None
        windows = self.config.windows
        return Layout.make(windows.columns, self.observation_dim, self.action_dim, has_flag=windows.has_flag)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to evaluate in the environments of a task.

    Attributes:
        title: name in tables and pages.
        note: how it differs from the others, in a few words.
        env_kwargs: arguments of the environment, in addition to those of the experiment.
        names_data: whether it names the data that a policy was trained on. An experiment is then for the protocols that
            its `search.protocols` names, and evaluated under no other.
        env_ids: patterns of the environment ids that it is for; all of the task's if there are none.
    """

    title: str
    note: str = ""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    names_data: bool = False
    env_ids: tuple[str, ...] = ()


def _one_protocol() -> dict[str, Protocol]:
    return {"default": Protocol(title="default")}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the platform knows about a family of environments.

    Attributes:
        name: its name on the command line.
        description: one line for lists.
        env_ids: patterns of environment ids that belong to it, such as `my_family/*`.
        presets: ready experiments; the task's name alone means the first. If there are none, the generic one is used.
        complete_env: fills in unknown fields of an environment: roles of columns, seconds of a step. The default finds
            goals in Dict observations, and nothing else.
        protocols: how its environments are evaluated.
        behaviors: policies that collect data, beside `random`.
        trained_policies: directory with policies that come with the task: `policy:NAME` is the file NAME.npz there, if
            there is no file NAME.
        policies: untrained policies that planners are compared with, beside `random`.
        controllers: from plans to actions, beside those of `diffplan.planning.control`.
        ask: goals, constraints and guides for planning, by default the `goal` of the infos. Takes the environment,
            observations float[num_envs, observation_dim] and Gymnasium's infos of a batch.
        guides: makes the task's own guides: the classes by the names that expressions call them by, dataclasses whose
            fields are numbers, lists of numbers or texts from a choice.
        projections: ends of plans for `planning.selection.refine`, made for an environment.
        symmetries: changes of windows for `windows.symmetries`, made for an environment.
        metrics: numbers of an episode beyond those of every task.
        measure: computes them: for each name in `metrics` a number for each episode, None or NaN if it is undefined.
            A name that is left out is None in every episode.
        objective: metric that a search maximises (or minimises, if less is better).
        references: returns that score 0 and 100; None if there are none for an environment.
        published: scores from the literature for an environment and a protocol.
        refuse_way: for a task that knows its free space: why nothing can pass positions in this order, the first of
            them a start, float[positions, size], in an environment; None if something can.
        figures: draw an environment's plans, rollouts and data; curves by default.
        text_map: the observations of a dataset as lines of text for a terminal, None for no map: from the environment,
            positions float[rows, positions], the width and `diffplan.terminal.Characters`.
        studies: searches beside those of every task; the first is the default.
        table: its benchmark table.
        pretrained: directory with its pretrained planners, one folder each.
        frames: changes of coordinates on import of foreign data, by name.
    """

    name: str
    description: str = ""
    env_ids: tuple[str, ...] = ()
    presets: Mapping[str, Preset] = field(default_factory=dict)
    complete_env: Callable[[EnvConfig], EnvConfig] | None = None
    protocols: Mapping[str, Protocol] = field(default_factory=_one_protocol)
    behaviors: Mapping[str, BehaviorPart] = field(default_factory=dict)
    trained_policies: Path | None = None
    policies: Mapping[str, MakePolicy] = field(default_factory=dict)
    controllers: Mapping[str, Any] = field(default_factory=dict)
    ask: Callable[[EnvConfig, np.ndarray, Mapping[str, Any]], Ask] | None = None
    guides: Callable[[], Mapping[str, type]] = dict
    projections: Mapping[str, Callable[[EnvConfig], Project]] = field(default_factory=dict)
    symmetries: Mapping[str, Callable[[EnvConfig], Symmetry]] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    measure: Callable[[FinishedEpisodes], Mapping[str, Sequence[float | None] | np.ndarray]] | None = None
    objective: str = "return"
    references: Callable[[EnvConfig], tuple[float, float] | None] = lambda env: None
    published: Callable[[EnvConfig, str], tuple[PublishedScore, ...]] = lambda env, protocol: ()
    refuse_way: Callable[[EnvConfig, np.ndarray], str | None] | None = None
    figures: Callable[[EnvConfig], Figures] | None = None
    text_map: Callable[..., list[str] | None] | None = None
    studies: Mapping[str, Study] = field(default_factory=dict)
    table: Callable[[], Table] | None = None
    pretrained: Path | None = None
    frames: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
