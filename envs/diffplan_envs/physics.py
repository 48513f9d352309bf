"""The MuJoCo model of D4RL's Maze2D: a ball on two slide joints, pushed by two motors, between boxes.

Source: D4RL `pointmaze/maze_model.py`. D4RL's floor touches the ball from below without friction, which exerts no
force along either joint; here it is only drawn, which saves a contact in every step. D4RL gives every geom the margin
0.002, of which its MuJoCo took the larger for a contact; today's adds the two up, so each has half of it here.
"""

# mujoco ships no types for its compiled part:
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import numpy as np

import diffplan_envs.graphics  # noqa: F401  (before mujoco)
from diffplan_envs.maze import BALL_RADIUS, Maze

import mujoco  # isort: skip

MAX_SPEED = 5.0
"""Speed limit of each axis in units per second, applied before each step (D4RL's `clip_velocity`)."""
STEP_SECONDS = 0.01

_TEMPLATE = """
<mujoco model="maze2d">
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="{step_seconds}" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <visual><global offwidth="640" offheight="640"/><headlight ambient=".5 .5 .5" diffuse=".5 .5 .5"/></visual>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.001" condim="1" contype="2" conaffinity="1"/>
  </default>
  <worldbody>
    <camera name="top" pos="{center_x} {center_y} {height}" xyaxes="0 1 0 -1 0 0" fovy="45"/>
    <geom name="floor" type="plane" size="{floor_x} {floor_y} .1" pos="{center_x} {center_y} -.1" contype="0"
          conaffinity="0" rgba=".93 .92 .89 1"/>
    <body name="ball" pos="1.2 1.2 0">
      <geom name="ball" type="sphere" size="{radius}" contype="1" rgba=".16 .38 .78 1"/>
      <joint name="ball_x" type="slide" axis="1 0 0"/>
      <joint name="ball_y" type="slide" axis="0 1 0"/>
    </body>
    <!-- not at the origin: MuJoCo would compile it as fixed there, and it is moved when it is drawn -->
    <site name="goal" pos="1 1 0" size=".2" rgba=".84 .25 .20 .8"/>
    {walls}
  </worldbody>
  <actuator>
    <motor joint="ball_x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
    <motor joint="ball_y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </actuator>
</mujoco>
"""


def make_model(maze: Maze) -> mujoco.MjModel:
    """Compile the MuJoCo model of a maze."""
    num_rows, num_columns = maze.walls.shape
    walls = "\n    ".join(
        f'<geom name="wall_{i}_{j}" type="box" pos="{i + 1} {j + 1} 0" size=".5 .5 .2" rgba=".28 .30 .36 1"/>'
        for i, j in np.argwhere(maze.walls)
    )
    return mujoco.MjModel.from_xml_string(
        _TEMPLATE.format(
            step_seconds=STEP_SECONDS,
            radius=BALL_RADIUS,
            walls=walls,
            center_x=(num_rows + 1) / 2,
            center_y=(num_columns + 1) / 2,
            floor_x=num_rows / 2,
            floor_y=num_columns / 2,
            height=1.25 * max(num_rows, num_columns) + 0.3,
        )
    )
