"""The contract: what a task is.

Every part has a default, so that a task with nothing filled in serves any Gymnasium environment with Box spaces: it is
scored by its return, has no goal unless its observations say so, is collected by random actions and drawn as curves.
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
        PublishedScore,
    )
    from diffplan.tasks.table import Table


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A complete experiment, and the sizes of its environment.

    The sizes stand here so that a preset can be looked at without making its environment, or having its data.

    Attributes:
        config: the experiment.
        observation_dim: size of an observation; None where that is only known from the environment or the data.
        action_dim: size of an action; None likewise.
    """

    config: Config
    observation_dim: int | None = None
    action_dim: int | None = None

    @property
    def layout(self) -> Layout | None:
        """Columns of a transition; None where the sizes are not known."""
        if self.observation_dim is None or self.action_dim is None:
            return None
        return Layout.make(self.config.windows.columns, self.observation_dim, self.action_dim)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to evaluate in the environments of a task.

    Attributes:
        title: what tables and pages call it.
        note: what is special about it, in a few words.
        env_kwargs: arguments of the environment under it, over those of the experiment.
    """

    title: str
    note: str = ""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)


def _one_protocol() -> dict[str, Protocol]:
    return {"default": Protocol(title="default")}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the platform knows of a family of environments.

    Attributes:
        name: what commands call it.
        description: one line for lists.
        env_ids: patterns of environment ids that belong to it, such as `my_family/*`.
        presets: ready experiments; the first is what the task's name alone means. None are needed: the generic one
            stands in.
        complete_env: fills in what is not known of an environment: roles of columns, seconds of a step. By default
            goals are found in Dict observations, and nothing else is known.
        protocols: how its environments are evaluated.
        behaviors: what collects data beside `random`.
        policies: policies without training that evaluations are compared with, beside `random`.
        controllers: from plans to actions, beside those of `diffplan.planning.control`.
        ask: what observations and their infos ask of a planner, by default the `goal` of the infos. Takes the
            environment, observations float[num_envs, observation_dim] and Gymnasium's infos of a batch.
        metrics: numbers of an episode beyond those of every task.
        measure: computes them: for each name of `metrics` a number for each episode, None or NaN where it means
            nothing; for a name that is left out, None in every episode.
        objective: metric that a search maximises (or minimises, if less is better).
        references: returns that score 0 and 100; None where there are none for an environment.
        published: scores from the literature for an environment and a protocol.
        figures: what draws an environment's plans, rollouts and data; curves by default.
        text_map: the observations of a dataset as lines of text for a terminal, None for no map: from the environment,
            positions float[rows, positions], the width and `diffplan.terminal.Characters`.
        studies: what a search may vary, beside the studies of every task; the first is the default one.
        table: its benchmark table.
        pretrained: directory with planners that come with it, one folder each.
        frames: changes of coordinates on import of foreign data, by name.
    """

    name: str
    description: str = ""
    env_ids: tuple[str, ...] = ()
    presets: Mapping[str, Preset] = field(default_factory=dict)
    complete_env: Callable[[EnvConfig], EnvConfig] | None = None
    protocols: Mapping[str, Protocol] = field(default_factory=_one_protocol)
    behaviors: Mapping[str, BehaviorPart] = field(default_factory=dict)
    policies: Mapping[str, MakePolicy] = field(default_factory=dict)
    controllers: Mapping[str, Any] = field(default_factory=dict)
    ask: Callable[[EnvConfig, np.ndarray, Mapping[str, Any]], Ask] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    measure: Callable[[FinishedEpisodes], Mapping[str, Sequence[float | None] | np.ndarray]] | None = None
    objective: str = "return"
    references: Callable[[EnvConfig], tuple[float, float] | None] = lambda env: None
    published: Callable[[EnvConfig, str], tuple[PublishedScore, ...]] = lambda env, protocol: ()
    figures: Callable[[EnvConfig], Figures] | None = None
    text_map: Callable[..., list[str] | None] | None = None
    studies: Mapping[str, Study] = field(default_factory=dict)
    table: Callable[[], Table] | None = None
    pretrained: Path | None = None
    frames: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
