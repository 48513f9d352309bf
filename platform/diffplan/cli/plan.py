"""`diffplan plan`: make one plan, print a line about it, and optionally write and draw it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command, advanced
from diffplan.cli.output import show
from diffplan.config import PlanningConfig
from diffplan.errors import ConfigError, PlanningError

if TYPE_CHECKING:
    import numpy as np

    from diffplan.planning.planner import Planner
    from diffplan.types import Plan


FAR_SHARE = 0.05
"""Distance from the data at which a plan leaves them, as a share of their widest range, where no limit is set."""
FAR_LEVEL = 5.0
"""The same in model space, where the data reach about 1, for a model whose data are not known in more detail."""


@dataclass(kw_only=True)
class PlanArguments(Arguments):
    """Make one plan; print it, write it and draw it."""

    checkpoint: Annotated[Positional[str], arg(metavar="CHECKPOINT")]
    """Directory or URL of the checkpoint."""
    start: tuple[float, ...]
    """Observation to plan from, or a position (with velocity 0)."""
    goal: tuple[float, ...] | None = None
    """Values of the goal columns at the end."""
    via: tuple[float, ...] = ()
    """Waypoints: positions to pass, in this order."""
    guides: tuple[str, ...] = ()
    """Guides whose sum is maximised, such as `keep_out([3, 4], 0.5)`; those of the settings if none."""
    guidance_scale: float | None = advanced(None)
    """Strength of the guides."""
    horizon: int | None = None
    """Transitions of the plan, or of each leg between waypoints; chosen by the planner if not given."""
    num_candidates: int | None = advanced(None)
    """Plans drawn for each horizon; that of the settings if not given."""
    settings: str | None = None
    """Path or URL of planner settings, all or some, that replace those of the checkpoint."""
    trust: bool = False
    """Allow settings and checkpoint to name functions and URLs."""
    seed: int = 0
    """Seed of the plan."""
    out: Path | None = None
    """JSON file to write the plan to."""
    picture: Path | None = None
    """PNG file to draw the plan to."""


def run(call: Call[PlanArguments]) -> None:
    """Make the plan."""
    import numpy as np
    import torch

    from diffplan.checkpoint import load_checkpoint
    from diffplan.cli.settings import choose_settings
    from diffplan.planning.constraints import Fixed
    from diffplan.planning.loading import load_planner

    arguments = call.arguments
    settings = choose_settings(
        load_checkpoint(arguments.checkpoint).config.planning,
        arguments.checkpoint,
        file=arguments.settings,
        overrides=call.overrides,
        trust=arguments.trust,
    )
    planner = load_planner(arguments.checkpoint, settings)
    start = _complete(planner, arguments.start)
    vias = _split_positions(planner, arguments.via)
    _check_way(planner, start, vias, arguments.goal)
    (made,) = planner.plan(
        start[None],
        None if arguments.goal is None else np.array([arguments.goal]),
        torch.Generator().manual_seed(arguments.seed),
        constraints=[Fixed(values=position) for position in vias],
        guides=arguments.guides or None,
        guidance_scale=arguments.guidance_scale,
        horizons=None if arguments.horizon is None else (arguments.horizon,),
        num_candidates=arguments.num_candidates,
    )
    if (line := describe_departure(planner, made)) is not None:
        show(line)
    show("; ".join(_describe(planner, made, with_guides=bool(arguments.guides))))
    if arguments.out is not None:
        try:
            arguments.out.write_text(json.dumps(_to_json(planner, made), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"--out: expected a file that can be written, got {arguments.out} ({error})") from None
        show(f"plan: {arguments.out}")
    if arguments.picture is not None:
        _draw(planner, made, arguments.goal, arguments.picture)
        show(f"picture: {arguments.picture}")


def _describe(planner: Planner, made: Plan, *, with_guides: bool) -> list[str]:
    env_steps = (made.horizon - 1) * made.stride
    step_seconds = planner.config.env.step_seconds
    seconds = "" if step_seconds is None else f" ({env_steps * step_seconds:.2f} s)"
    facts = [f"{made.horizon} transitions, {env_steps} environment steps{seconds}"]
    verdict = "consistency unknown"
    if planner.judges_consistency:
        verdict = "consistent" if made.consistent else "not consistent"
    facts.append(verdict if made.speed_error is None else f"speed error {made.speed_error:.2f} ({verdict})")
    if made.departure is not None:
        facts.append(f"at most {made.departure:.2f} from the data")
    if with_guides:
        facts.append(f"violation {made.violation:.3g}")
    return facts


def describe_departure(planner: Planner, made: Plan) -> str | None:
    """A line about a plan that leaves the data that its model was trained on; None for one that does not.

    Such a plan is a guess, however consistent it is with itself.
    """
    import numpy as np

    model, columns = planner.model, list(planner.model.env.position_columns)
    if planner.support is not None and columns:
        lengths = np.array([made.horizon])
        (distance,), _ = planner.support.departures(made.observations[None], model.env, model.step_seconds, lengths)
        widest = float(np.ptp(planner.support.points, axis=0).max())
        limit = planner.settings.horizon.max_departure or FAR_SHARE * widest
        if distance > limit:
            return f"leaves the data: up to {distance:.2f} away from the positions in them (limit {limit:.2f})"
        return None
    levels = model.normalize_observations(made.observations).abs().numpy()
    level = float((levels[:, columns] if columns else levels).max())
    if level > FAR_LEVEL:
        return f"leaves the data: a value is {level:.1f} times as far from their middle as most of them"
    return None


def _check_way(
    planner: Planner, start: np.ndarray, vias: list[tuple[float, ...]], goal: tuple[float, ...] | None
) -> None:
    """Raise `PlanningError` where the task knows that nothing can get there."""
    import numpy as np

    from diffplan.tasks.registry import task_of

    env = planner.model.env
    refuse, columns = task_of(env).refuse_way, list(env.position_columns)
    if refuse is None or not columns:
        return
    positions = [start[columns], *vias]
    values = dict(zip(planner.model.goal_columns, goal or (), strict=False))
    if all(column in values for column in columns):
        positions.append([values[column] for column in columns])
    way = np.array(positions, dtype=np.float64)
    reason = refuse(env, way) if np.isfinite(way).all() else None  # the planner refuses the others
    if reason is not None:
        raise PlanningError(f"plan: {reason}")


def _split_positions(planner: Planner, values: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Positions from the numbers of `--via`."""
    size = len(planner.config.env.position_columns)
    if values and (not size or len(values) % size):
        raise PlanningError(f"--via: expected {size} numbers for each position, got {len(values)}")
    return [values[i : i + size] for i in range(0, len(values), size)] if size else []


def _complete(planner: Planner, start: tuple[float, ...]) -> np.ndarray:
    """The observation to plan from; a position alone gets velocity 0."""
    import numpy as np

    size, positions = planner.model.layout.observation_dim, list(planner.config.env.position_columns)
    if len(start) == size:
        return np.array(start, dtype=np.float32)
    if len(start) != len(positions):
        raise PlanningError(
            f"--start: expected {size} numbers (an observation) or {len(positions)} (a position), got {len(start)}"
        )
    observation = np.zeros(size, dtype=np.float32)
    observation[positions] = start
    return observation


def _to_json(planner: Planner, made: Plan) -> dict[str, Any]:
    return {
        "observations": made.observations.tolist(),
        "actions": None if made.actions is None else made.actions.tolist(),
        "stride": made.stride,
        "speed_error": made.speed_error,
        "consistent": made.consistent if planner.judges_consistency else None,
        "departure": made.departure,
        "violation": made.violation,
        "guide_score": made.guide_score,
    }


def _draw(planner: Planner, made: Plan, goal: tuple[float, ...] | None, path: Path) -> None:
    import numpy as np

    from diffplan.tasks.registry import make_experiment_figures

    figures = make_experiment_figures(planner.config)
    figure = figures.draw_plans([made], None if goal is None else np.array([goal]))
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--picture: expected an image file such as plan.png, got {path} ({error})") from None


COMMAND = Command(
    arguments=PlanArguments,
    run=run,
    sections={"planning": PlanningConfig},
)
