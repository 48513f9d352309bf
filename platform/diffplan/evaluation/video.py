"""A video of one episode of a policy, drawn by the environment itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image

from diffplan.config import EnvConfig
from diffplan.environments import make_env
from diffplan.errors import ConfigError, describe_error, describe_refusal
from diffplan.evaluation.protocol import apply_protocol, choose_protocol
from diffplan.evaluation.rollout import begin_episodes, start_policy
from diffplan.evaluation.sources import PolicySource
from diffplan.runs.progress import Progress
from diffplan.seeding import Stream, make_seed
from diffplan.tasks.contracts import RolloutContext

FORMATS = {".webp": {"quality": 70, "method": 4}, ".gif": {"optimize": True}}
"""Formats by the ending of a file, and how they are written."""
MAX_FRAMES_PER_SECOND = 25.0
DEFAULT_FRAMES_PER_SECOND = 20.0
"""For environments that do not say how long a step takes."""


@dataclass(frozen=True)
class Video:
    """A video, and what happens in it.

    Attributes:
        path: of the file.
        num_frames: frames in it.
        frames_per_second: of the video; that of the environment's own time.
        num_steps: environment steps that it shows.
        undiscounted_return: of these steps.
    """

    path: Path
    num_frames: int
    frames_per_second: float
    num_steps: int
    undiscounted_return: float


def record_video(
    source: PolicySource,
    out: str | Path,
    *,
    protocol: str | None = None,
    episode: int = 0,
    seed: int = 0,
    max_steps: int = 400,
    width: int = 320,
) -> Video:
    """Run an episode and draw it.

    It starts as the episode of that number in an evaluation with the same seed; plans may differ, for an evaluation
    draws the noise of many episodes at once.

    Args:
        source: the policy.
        out: file to write, WebP or GIF by its ending.
        protocol: protocol of the task; None for the only one.
        episode: number of the episode.
        seed: seed of the evaluation.
        max_steps: environment steps after which the video ends, if the episode does not.
        width: of the frames in pixels; frames are not made larger.

    Raises:
        ConfigError: an ending of another format, an environment that does not draw itself, or a number out of range.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out: expected a file that ends in {' or '.join(FORMATS)}, got {out.name!r}")
    for name, value, least in (("episode", episode, 0), ("max_steps", max_steps, 1), ("width", width, 16)):
        if value < least:
            raise ConfigError(f"{name}: expected at least {least}, got {value}")
    env = apply_protocol(choose_protocol(protocol, source.env, source.protocols), source.env)
    batch = make_drawn_batch(env)
    try:
        rate, stride = _choose_rate(env, batch)
        frames, num_steps, total = _run(source, env, batch, episode, seed, max_steps, stride, width)
    finally:
        batch.close()
    _write(frames, out, rate)
    return Video(out, len(frames), rate, num_steps, total)


def make_drawn_batch(env: EnvConfig) -> SyncVectorEnv:
    """A batch of one environment that draws itself, between its steps if it can.

    Raises:
        ConfigError: it cannot draw itself.
    """
    single = make_env(env, render_mode="rgb_array")
    modes = single.metadata.get("render_modes", ())
    if "rgb_array" not in modes:
        single.close()
        raise ConfigError(f"env.env_id {env.env_id!r}: expected an environment that draws itself (rgb_array), got none")
    if "rgb_array_list" in modes:
        single.close()
        single = make_env(env, render_mode="rgb_array_list")
    return SyncVectorEnv([lambda: single], autoreset_mode=AutoresetMode.DISABLED)


def _run(
    source: PolicySource,
    env: EnvConfig,
    batch: SyncVectorEnv,
    episode: int,
    seed: int,
    max_steps: int,
    stride: int,
    width: int,
) -> tuple[list[Image.Image], int, float]:
    """A frame for each `stride` steps, the number of steps, and their return."""
    begun = begin_episodes(env, batch, [episode], seed, Stream.EVALUATION, None)
    generator = torch.Generator().manual_seed(make_seed(seed, Stream.EVALUATION, episode, 1))
    own_seed = make_seed(seed, Stream.EVALUATION, episode, 2)
    policy = source.load()(RolloutContext(env, [own_seed], generator, begun.action_low, begun.action_high))
    start_policy(policy, begun.observations, begun.ask.goals, begun.ask)
    observations, frames, total = begun.observations, _draw(batch, width), 0.0
    with Progress("video", max_steps, "steps") as progress:
        for number in range(1, max_steps + 1):
            observations, rewards, terminations, truncations, _ = batch.step(policy.act(observations))
            total += float(rewards[0])
            if number % stride == 0:
                frames += _draw(batch, width)
            progress.advance(1)
            if terminations[0] or truncations[0]:
                return frames, number, total
    return frames, max_steps, total


def _draw(batch: SyncVectorEnv, width: int) -> list[Image.Image]:
    """The present frame, or all since the last call."""
    try:
        frames = batch.render()
    except Exception as error:  # such as a library for drawing that is not installed
        raise ConfigError(f"video: expected an environment that draws itself, got: {describe_error(error)}") from error
    assert frames is not None
    new = frames[0] if isinstance(frames[0], list) else [frames[0]]
    return [_fit(Image.fromarray(np.asarray(frame, np.uint8)), width) for frame in new]


def _fit(image: Image.Image, width: int) -> Image.Image:
    if image.width <= width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def _choose_rate(env: EnvConfig, batch: SyncVectorEnv) -> tuple[float, int]:
    """Frames per second, and the steps from one frame to the next."""
    single = batch.envs[0]
    between = single.render_mode == "rgb_array_list"  # frames have a time of their own
    rate = 1 / env.step_seconds if env.step_seconds and not between else single.metadata.get("render_fps")
    rate = float(rate or DEFAULT_FRAMES_PER_SECOND)
    stride = max(int(np.ceil(rate / MAX_FRAMES_PER_SECOND)), 1)
    return rate / stride, stride


def _write(frames: list[Image.Image], out: Path, rate: float) -> None:
    kind = out.suffix.lower()
    if kind == ".gif":  # colours of the first frame, so that nothing flickers
        first = frames[0].quantize(128)
        frames = [frame.quantize(palette=first, dither=Image.Dither.NONE) for frame in frames]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        frames[0].save(
            out, save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0, **FORMATS[kind]
        )
    except OSError as error:
        raise ConfigError(f"--out {out}: {describe_refusal(error) or error}") from None
