"""The commands about plans: `diffplan calibrate` and `diffplan plan`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from diffplan.commands import parse, show
from diffplan.errors import ConfigError, PlanningError
from diffplan.planning.settings import load_settings

if TYPE_CHECKING:
    import numpy as np

    from diffplan.planning.planner import Planner
    from diffplan.types import Plan


@dataclasses.dataclass(kw_only=True)
class CalibrateArguments:
    """Measure how consistent data and plans are, and fit the small models that planning uses beside the diffuser."""

    checkpoint: Positional[str]
    """Directory or URL of the checkpoint; it gains its companions and calibration.json."""
    data: str | None = None
    """Directory or URL of the dataset; that of the checkpoint if not given."""
    settings: Path | None = None
    """Planner settings whose sampler and horizons are learned; those of the checkpoint if not given."""
    num_plans: int = 40_000
    """Plans that the horizon model learns from."""
    quantile: float = 0.65
    """What the horizon model predicts of the speed errors of a horizon: 0.5 is their median, more is more cautious."""
    seed: int = 0
    """Seed of everything random in it."""


@dataclasses.dataclass(kw_only=True)
class PlanArguments:
    """Make one plan, print it in a line, and write and draw it where asked."""

    checkpoint: Positional[Path]
    """Directory of the checkpoint."""
    start: tuple[float, ...]
    """The observation to plan from; if only a position is given, at rest."""
    goal: tuple[float, ...] | None = None
    """The position to end at."""
    via: tuple[tuple[float, float], ...] = ()
    """Positions to pass on the way, in this order."""
    guides: tuple[str, ...] = ()
    """What is maximised: expressions such as `keep_out([3, 4], 0.5)` or import paths; those of the settings if none."""
    guidance_scale: float | None = None
    """Strength of the guides."""
    horizon: int | None = None
    """Transitions of the plan, or of each leg between positions to pass; chosen if not given."""
    num_candidates: int | None = None
    """Plans drawn for each horizon; that of the settings if not given."""
    settings: Path | None = None
    """Planner settings, such as the best.json of a search; those of the checkpoint if not given."""
    seed: int = 0
    """Seed of the plan."""
    out: Path | None = None
    """JSON file for the plan."""
    picture: Path | None = None
    """PNG file for a drawing of the plan."""


def calibrate(arguments: list[str]) -> None:
    """`diffplan calibrate`."""
    parsed = parse(CalibrateArguments, arguments, "calibrate")
    if not 0 < parsed.quantile < 1 or parsed.num_plans < 1:
        raise ConfigError(
            "calibrate: expected --quantile in (0, 1) and --num_plans >= 1, "
            f"got {parsed.quantile} and {parsed.num_plans}"
        )
    from diffplan.data.opening import open_store
    from diffplan.run_directory import CALIBRATION
    from diffplan.training.companions import fit_companions

    result = fit_companions(
        parsed.checkpoint,
        data=parsed.data,
        settings=None if parsed.settings is None else load_settings(parsed.settings),
        num_plans=parsed.num_plans,
        quantile=parsed.quantile,
        seed=parsed.seed,
    )
    show(_format_calibration(result))
    show(f"calibration: {open_store(parsed.checkpoint).locate(CALIBRATION)}")


def _format_calibration(result: dict[str, Any]) -> str:
    data, plans = result["data"], result["plans"]
    lines = ["speed error of real windows: quantiles " + ", ".join(f"{q:.1%}" for q in data["quantiles"])]
    shown = sorted({0, len(data["horizons"]) // 2, len(data["horizons"]) - 1})
    for i in shown:
        values = "  ".join(f"{v:6.2f}" for v in data["speed_errors"][i])
        lines.append(f"  horizon {data['horizons'][i]:4d}  {values}")
    limits = " and ".join(f"{name} {plans[name]:g}" for name in ("max_speed_error", "max_departure") if plans[name])
    lines.append(f"plans within {limits}, and how often that was predicted rightly")
    for horizon, share, accuracy in zip(plans["horizons"], plans["share_consistent"], plans["accuracy"], strict=True):
        if share is not None:
            lines.append(f"  horizon {horizon:4d}  {share:6.1%}  {accuracy:6.1%}")
    lines.append(f"inverse dynamics: error {result['inverse_dynamics_error']:.1%} of the spread of actions")
    lines.append(f"the data visited {result['support_points']:,} places")
    return "\n".join(lines)


def plan(arguments: list[str]) -> None:
    """`diffplan plan`."""
    parsed = parse(PlanArguments, arguments, "plan")
    import numpy as np
    import torch

    from diffplan.planning.loading import load_planner
    from diffplan.planning.problem import Fixed

    settings = None if parsed.settings is None else load_settings(parsed.settings)
    planner = load_planner(parsed.checkpoint, settings)
    start = _complete(planner, parsed.start)
    (made,) = planner.plan(
        start[None],
        None if parsed.goal is None else np.array([parsed.goal]),
        torch.Generator().manual_seed(parsed.seed),
        constraints=[Fixed(values=position) for position in parsed.via],
        guides=parsed.guides or None,
        guidance_scale=parsed.guidance_scale,
        horizons=None if parsed.horizon is None else (parsed.horizon,),
        num_candidates=parsed.num_candidates,
    )
    env_steps = (made.horizon - 1) * made.stride
    facts = [
        f"{made.horizon} transitions, {env_steps} environment steps "
        f"({env_steps * planner.config.env.step_seconds:.2f} s)",
        f"speed error {made.speed_error:.2f} ({'consistent' if made.consistent else 'not consistent'})",
    ]
    if made.departure is not None:
        facts.append(f"at most {made.departure:.2f} from the data")
    if parsed.guides:
        facts.append(f"violation {made.violation:.3g}")
    show("; ".join(facts))
    if parsed.out is not None:
        try:
            parsed.out.write_text(json.dumps(_to_json(made), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"--out: expected a file that can be written, got {parsed.out} ({error})") from None
        show(f"plan: {parsed.out}")
    if parsed.picture is not None:
        _draw(planner, made, parsed.goal, parsed.picture)
        show(f"picture: {parsed.picture}")


def _complete(planner: Planner, start: tuple[float, ...]) -> np.ndarray:
    """The observation to plan from; a position alone is put at rest."""
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


def _to_json(made: Plan) -> dict[str, Any]:
    return {
        "observations": made.observations.tolist(),
        "actions": None if made.actions is None else made.actions.tolist(),
        "stride": made.stride,
        "speed_error": made.speed_error,
        "consistent": made.consistent,
        "departure": made.departure,
        "violation": made.violation,
        "guide_score": made.guide_score,
    }


def _draw(planner: Planner, made: Plan, goal: tuple[float, ...] | None, path: Path) -> None:
    import numpy as np

    from diffplan.tasks.registry import make_figures

    figures = make_figures(planner.config.env)
    figure = figures.draw_plans([made], None if goal is None else np.array([goal]))
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--picture: expected an image file such as plan.png, got {path} ({error})") from None
