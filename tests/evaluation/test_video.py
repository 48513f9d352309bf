"""Videos of episodes: real frames of real environments, read back from the file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffplan.cli import main
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.evaluation.sources import find_policy
from diffplan.evaluation.video import record_video

PENDULUM = EnvConfig(env_id="Pendulum-v1")
HOPPER = EnvConfig(env_id="diffplan/Hopper-v4")


def read(path: Path) -> tuple[np.ndarray, int]:
    """Frames uint8[frames, height, width, 3], and the milliseconds of the first."""
    with Image.open(path) as image:
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
        return np.stack(frames), image.info["duration"]


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_a_video_shows_the_episode_in_its_own_time(tmp_path: Path, ending: str) -> None:
    source = find_policy("baseline:random", env=HOPPER)
    video = record_video(source, tmp_path / f"hopper.{ending}", protocol="medium", episode=3, seed=5, width=64)
    frames, milliseconds = read(video.path)
    assert frames.shape[1:] == (64, 64, 3)
    assert len(frames) == video.num_frames == video.num_steps // 5 + 1  # every fifth of 125 steps a second
    assert milliseconds == 40
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50  # the robot has moved
    assert frames[0].std() > 10


def test_the_episode_is_that_of_an_evaluation(tmp_path: Path) -> None:
    source = find_policy("baseline:random", env=HOPPER)
    video = record_video(source, tmp_path / "hopper.webp", protocol="medium", episode=2, width=32)
    (result,), _ = evaluate_episodes(source.load(), HOPPER, [2], seed=0)
    assert (video.num_steps, video.undiscounted_return) == (result.length, pytest.approx(result.undiscounted_return))


def test_it_ends_after_as_many_steps_as_asked(tmp_path: Path) -> None:
    source = find_policy("baseline:random", env=HOPPER)
    video = record_video(source, tmp_path / "hopper.gif", protocol="medium", max_steps=7, width=32)
    assert video.num_steps == 7
    assert len(read(video.path)[0]) == video.num_frames


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "a.mp4"}, r"ends in \.webp or \.gif, got 'a\.mp4'"),
        ({"episode": -1}, "episode: expected at least 0"),
        ({"max_steps": 0}, "max_steps: expected at least 1"),
        ({"width": 3}, "width: expected at least 16"),
        ({"protocol": "none"}, "protocol"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    out = tmp_path / changes.pop("out", "a.webp")
    with pytest.raises(ConfigError, match=message):
        record_video(find_policy("baseline:random", env=PENDULUM), out, **changes)
    assert not out.exists()


def test_the_command_shows_a_planner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "videos" / "maze.webp"
    command = ["video", "pretrained:maze2d-umaze", "--protocol", "maze2d", "--out", str(out), "--max_steps", "40"]
    assert main(command) == 0
    assert f"video: {out} (11 frames at 25 a second" in capsys.readouterr().out
    assert read(out)[0].std() > 10
    (tmp_path / "file").touch()
    command[command.index(str(out))] = str(tmp_path / "file" / "maze.webp")
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --out ")
