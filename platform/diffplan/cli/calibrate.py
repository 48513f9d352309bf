"""`diffplan calibrate`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command
from diffplan.cli.output import show
from diffplan.cli.overrides import override_section
from diffplan.config import CalibrationConfig, PlanningConfig


@dataclass(kw_only=True)
class CalibrateArguments(Arguments):
    """Measure consistency, and fit the models that planning uses."""

    checkpoint: Annotated[Positional[str], arg(metavar="CHECKPOINT")]
    """Directory or URL of the checkpoint; companions and calibration.json are added to it."""
    data: str | None = None
    """Directory or URL of the dataset; that of the checkpoint if not given."""
    settings: str | None = None
    """Path or URL of planner settings, all or some; the horizon model is fitted to their sampler and horizons. Those
    of the checkpoint if not given."""
    trust: bool = False
    """Allow settings and checkpoint to name functions and URLs."""
    seed: int = 0
    """Seed of every random number."""


def check(call: Call[CalibrateArguments]) -> None:
    """Raise `ConfigError` for numbers out of range."""
    override_section(CalibrationConfig(), call.overrides, "calibration")


def run(call: Call[CalibrateArguments]) -> None:
    """Calibrate, and print the measurements."""
    from diffplan.checkpoint import load_checkpoint
    from diffplan.cli.settings import choose_settings
    from diffplan.planning.trust import require_same_place, require_trust
    from diffplan.runs.layout import CALIBRATION
    from diffplan.storage.opening import open_store
    from diffplan.training.companions import fit_companions

    arguments = call.arguments
    checkpoint = load_checkpoint(arguments.checkpoint)
    if arguments.data is None and not arguments.trust:
        require_same_place(checkpoint.dataset, arguments.checkpoint)
    if not arguments.trust:
        require_trust({"symmetries": checkpoint.config.windows.symmetries}, arguments.checkpoint, prefix="windows")
    settings = choose_settings(
        checkpoint.config.planning,
        arguments.checkpoint,
        file=arguments.settings,
        overrides=call.overrides,
        trust=arguments.trust,
    )
    result = fit_companions(
        arguments.checkpoint,
        data=arguments.data,
        settings=settings,
        calibration=override_section(checkpoint.config.calibration, call.overrides, "calibration"),
        seed=arguments.seed,
    )
    show(_format_calibration(result))
    show(f"calibration: {open_store(arguments.checkpoint).locate(CALIBRATION)}")


def _format_calibration(result: dict[str, Any]) -> str:
    """The measurements, one per line; companions that the settings do not use are left out."""
    lines = []
    if (data := result["data"]) is not None:
        lines.append("speed error of real windows: quantiles " + ", ".join(f"{q:.1%}" for q in data["quantiles"]))
        for i in sorted({0, len(data["horizons"]) // 2, len(data["horizons"]) - 1}):
            values = "  ".join(f"{v:6.2f}" for v in data["speed_errors"][i])
            lines.append(f"  horizon {data['horizons'][i]:4d}  {values}")
    if (plans := result["plans"]) is not None:
        limits = " and ".join(f"{name} {plans[name]:g}" for name in ("max_speed_error", "max_departure") if plans[name])
        lines.append(f"plans within {limits}, and how often that was predicted rightly")
        for horizon, share, accuracy in zip(
            plans["horizons"], plans["share_consistent"], plans["accuracy"], strict=True
        ):
            if share is not None:
                lines.append(f"  horizon {horizon:4d}  {share:6.1%}  {accuracy:6.1%}")
    if (error := result["inverse_dynamics_error"]) is not None:
        lines.append(f"inverse dynamics: error {error:.1%} of the spread of actions")
    if (errors := result["action_head_errors"]) is not None:
        parts = ", ".join(f"{name} {error:.1%}" for name, error in errors.items())
        lines.append(f"action heads: error of the spread of actions: {parts}")
    if (value := result["value"]) is not None:
        lines.append(
            f"value: error {value['value']:.1%} of the spread of values, of rewards {value['reward']:.1%} of theirs"
        )
    if (points := result["support_points"]) is not None:
        lines.append(f"the data visited {points:,} places")
    return "\n".join(lines or ["the settings have no use for a companion"])


COMMAND = Command(
    arguments=CalibrateArguments,
    run=run,
    check=check,
    sections={"calibration": CalibrationConfig, "planning": PlanningConfig},
    aliases={f.name: f"calibration.{f.name}" for f in dataclasses.fields(CalibrationConfig)},
)
