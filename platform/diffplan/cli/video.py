"""`diffplan video`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command
from diffplan.cli.evaluate import EvaluatedEnv, check_policy, find_source
from diffplan.cli.experiments import require_counts
from diffplan.cli.output import plain_warnings, show
from diffplan.config import PlanningConfig


@dataclass(kw_only=True)
class VideoArguments(Arguments):
    """Show one episode of a planner or a baseline as a video, drawn by its environment."""

    policy: Annotated[Positional[str], arg(metavar="POLICY")]
    """As for `diffplan evaluate`: a checkpoint, a pretrained planner or a baseline."""
    out: Path
    """File to write, .webp or .gif."""
    protocol: str | None = None
    """Protocol of the task; required if it has several."""
    episode: int = 0
    """Number of the episode: it starts as the one of this number in an evaluation with the same seed."""
    seed: int = 0
    """Seed of the evaluation."""
    max_steps: int = 400
    """Environment steps after which the video ends, if the episode does not."""
    width: int = 320
    """Width of the frames, in pixels."""
    settings: str | None = None
    """Path or URL of planner settings, all or some, such as best.json of a search."""
    trust: bool = False
    """Allow settings and checkpoint to name functions and URLs."""


def check(call: Call[VideoArguments]) -> None:
    """Raise `ConfigError` for a number out of range, an unknown baseline or an unknown protocol."""
    require_counts(call.arguments, "max_steps")
    require_counts(call.arguments, "episode", least=0)
    check_policy(call)


def run(call: Call[VideoArguments]) -> None:
    """Make the video, and say what it shows."""
    from diffplan.evaluation.video import record_video

    arguments = call.arguments
    with plain_warnings():
        video = record_video(
            find_source(call),
            arguments.out,
            protocol=arguments.protocol,
            episode=arguments.episode,
            seed=arguments.seed,
            max_steps=arguments.max_steps,
            width=arguments.width,
        )
    size = video.path.stat().st_size / 1e6
    show(f"episode {arguments.episode}: {video.num_steps} steps, return {video.undiscounted_return:.1f}")
    show(f"video: {video.path} ({video.num_frames} frames at {video.frames_per_second:.3g} a second, {size:.2f} MB)")


COMMAND = Command(
    arguments=VideoArguments,
    run=run,
    check=check,
    sections={"env": EvaluatedEnv, "planning": PlanningConfig},
    aliases={"env_id": "env.env_id"},
    places=("policy", "settings"),
)
