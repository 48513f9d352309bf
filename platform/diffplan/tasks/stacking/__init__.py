"""Block stacking by a robot arm with a suction cup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplan.config import EnvConfig
from diffplan.tasks.contracts import BehaviorContext, BehaviorPart, RolloutContext
from diffplan.tasks.stacking.metrics import METRICS, measure
from diffplan.tasks.stacking.presets import PRESETS
from diffplan.tasks.stacking.published import get_published_scores
from diffplan.tasks.task import Protocol, Task

if TYPE_CHECKING:
    import numpy as np

    from diffplan.tasks.contracts import Ask, Policy, Project, Symmetry
    from diffplan.tasks.stacking.script import Demonstrator
    from diffplan.tasks.table import Table


def _demonstrate(context: BehaviorContext) -> Demonstrator:
    from diffplan.tasks.stacking.script import Demonstrator

    return Demonstrator(context.env)


def _follow_script(context: RolloutContext) -> Policy:
    from diffplan.tasks.stacking.script import Script

    return Script(context.env, context.seeds)


def _follow_demonstrator(context: RolloutContext) -> Policy:
    from diffplan.tasks.stacking.script import DemonstratorPolicy

    return DemonstratorPolicy(context.env, context.seeds)


def _ask(env: EnvConfig, observations: np.ndarray, infos: Mapping[str, Any]) -> Ask:
    from diffplan.tasks.stacking.asking import ask_for_pairs

    return ask_for_pairs(env, observations, infos)


def _list_guides() -> Mapping[str, type]:
    from diffplan.tasks.stacking.guides import GUIDES

    return GUIDES


def _make_settling(env: EnvConfig) -> Project:
    from diffplan.tasks.stacking.columns import find_space
    from diffplan.tasks.stacking.guides import Settle

    return Settle(find_space(env).name)


def _make_turns(env: EnvConfig) -> Symmetry:
    from diffplan.tasks.stacking.symmetries import make_turns

    return make_turns(env)


def _make_exchanges(env: EnvConfig) -> Symmetry:
    from diffplan.tasks.stacking.symmetries import make_exchanges

    return make_exchanges(env)


def _make_table() -> Table:
    from diffplan.tasks.stacking.table import StackingTable

    return StackingTable()


def _get_reference_returns(env: EnvConfig) -> tuple[float, float]:
    """A return is the share of what was asked that is done at the end, so scores are per cent."""
    del env
    return 0.0, 1.0


def _make_protocol(title: str, note: str, kind: str) -> Protocol:
    kwargs: dict[str, Any] = {"kind": kind, "rule": "strict", "on_pile": None, "num_placements": None}
    return Protocol(title=title, note=note, env_kwargs=kwargs)


TASK = Task(
    name="stacking",
    description="block stacking by a robot arm",
    env_ids=("diffplan/Stack*",),
    presets=PRESETS,
    protocols={
        "unconditional": _make_protocol("unconditional", "a tower of all blocks", "unconditional"),
        "conditional": _make_protocol("conditional", "a tower in a given order", "conditional"),
        "rearrangement": _make_protocol("rearrangement", "given pairs, from random piles", "rearrange"),
    },
    behaviors={"demonstrator": BehaviorPart(_demonstrate)},
    policies={"script": _follow_script, "demonstrator": _follow_demonstrator},
    ask=_ask,
    guides=_list_guides,
    projections={"settle": _make_settling},
    symmetries={"turns": _make_turns, "exchanges": _make_exchanges},
    metrics=METRICS,
    measure=measure,
    objective="score",
    references=_get_reference_returns,
    published=get_published_scores,
    table=_make_table,
    pretrained=Path(__file__).parent / "pretrained",
)
