import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

LARGE_ROWS, LARGE_COLUMNS = 9, 12


def pixel_of(position):
    """Where a position of Maze2D-Large appears: rows of the maze down, columns to the right, the maze centred."""
    world = np.asarray(position) + 1.2
    offset = world - [(LARGE_ROWS + 1) / 2, (LARGE_COLUMNS + 1) / 2]
    # The camera hangs over the centre at this height and sees 45 degrees from top to bottom.
    height = 1.25 * LARGE_COLUMNS + 0.3
    return np.rint(240 + offset * 240 / (height * np.tan(np.pi / 8))).astype(int)


def centroid(mask):
    assert mask.sum() > 5
    return np.argwhere(mask).mean(axis=0)


def channels(image):
    return np.moveaxis(image.astype(int), -1, 0)


@pytest.fixture(scope="module")
def env():
    env = gymnasium.make("diffplan/Maze2D-Large-v1", render_mode="rgb_array")
    yield env
    env.close()


@pytest.mark.parametrize("position", [(1.0, 8.0), (7.0, 1.0), (5.0, 10.0)])
def test_picture_shows_the_ball_where_it_is(env, position):
    env.reset(options={"observation": [*position, 0, 0]})
    image = env.render()
    assert (image.shape, image.dtype) == ((480, 480, 3), np.uint8)
    red, green, blue = channels(image)
    ball = (blue > red + 100) & (blue > green + 40)
    np.testing.assert_allclose(centroid(ball), pixel_of(position), atol=2)


def test_picture_shows_the_goal_where_it_is(env):
    for goal in [(7.0, 9.0), (1.0, 1.0)]:
        env.reset(options={"observation": [5.0, 10.0, 0, 0], "goal": goal})
        red, green, blue = channels(env.render())
        np.testing.assert_allclose(centroid((red > green + 80) & (red > blue + 80)), pixel_of(goal), atol=3)


def test_every_cell_of_the_picture_is_wall_or_floor_as_in_the_layout(env):
    env.reset(options={"observation": [1.0, 1.0, 0, 0], "goal": [1.0, 1.0]})
    image = env.render()
    walls = env.unwrapped.maze.walls
    for i, j in np.argwhere(np.ones_like(walls)):
        if (i, j) != (1, 1):
            row, column = pixel_of((i - 0.2, j - 0.2))
            assert (image[row, column].mean() < 190) == walls[i, j], (i, j)


def test_drawing_does_not_disturb_the_physics():
    drawn = gymnasium.make("diffplan/Maze2D-UMaze-v1", render_mode="rgb_array")
    plain = gymnasium.make("diffplan/Maze2D-UMaze-v1")
    drawn.reset(seed=0)
    plain.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(30):
        action = generator.choice([-1.0, 1.0], 2).astype(np.float32)
        for _ in range(8):
            np.testing.assert_array_equal(drawn.step(action)[0], plain.step(action)[0])
        drawn.render()
    drawn.close()


def test_picture_is_drawn_without_a_screen_and_without_settings(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")}
    script = (
        "import gymnasium; env = gymnasium.make('diffplan/Maze2D-UMaze-v1', render_mode='rgb_array');"
        "env.reset(seed=0); print(env.render().shape)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(480, 480, 3)", done.stderr


def test_stepping_needs_no_library_to_draw_with(tmp_path):
    # Where there is no EGL, importing mujoco fails if it was told to draw with it.
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")}
    script = """
import ctypes, os
init = ctypes.CDLL.__init__
def without_egl(self, name, *args, **kwargs):
    if "EGL" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    init(self, name, *args, **kwargs)
ctypes.CDLL.__init__ = without_egl
import gymnasium
env = gymnasium.make("diffplan/Maze2D-UMaze-v1")
env.reset(seed=0)
print(len(env.step(env.action_space.sample())[0]), os.environ.get("MUJOCO_GL"))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "4 None", done.stderr


def test_nothing_is_drawn_without_a_render_mode():
    env = gymnasium.make("diffplan/Maze2D-UMaze-v1").unwrapped
    env.reset(seed=0)
    assert env.render() is None
