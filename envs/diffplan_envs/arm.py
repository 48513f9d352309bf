"""A robot arm of 7 joints with a suction cup, and cubes on a floor, from MuJoCo's primitives.

Joints 1, 3, 5, 7 turn about the links and joints 2, 4, 6 bend the arm. With joints 3, 5 and 7 at 0 the arm is planar,
so inverse kinematics with the cup pointing down has a closed form.
"""

# mujoco ships no types for its compiled part:
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import diffplan_envs.graphics  # noqa: F401  (before mujoco)

# isort: split
import mujoco
import numpy as np

NUM_JOINTS = 7
BLOCK_SIZE = 0.1
"""Edge of a cube, in m."""
SHOULDER_HEIGHT, UPPER_ARM, FOREARM, TOOL = 0.36, 0.45, 0.45, 0.2
"""Lengths of the arm, in m; the tool ends in the cup."""
TIMESTEP = 0.01
"""Seconds of a step of the physics."""
CUP = "cup"
"""The site at the end of the tool."""
_COLORS = (
    "0.85 0.25 0.2 1",
    "0.2 0.55 0.85 1",
    "0.95 0.75 0.2 1",
    "0.35 0.7 0.35 1",
    "0.6 0.4 0.75 1",
    "0.9 0.5 0.3 1",
)
_STIFFNESS, _BLOCK_MASS = 2000.0, 0.2


def make_arm_model(num_blocks: int) -> mujoco.MjModel:
    """The arm with so many cubes; positions are 7 joint angles, then position and quaternion of each cube."""
    blocks = "".join(
        f"""
    <body name="block{i}" pos="{0.6 + 0.2 * i} 0 {BLOCK_SIZE / 2}">
      <freejoint/>
      <geom type="box" size="{BLOCK_SIZE / 2} {BLOCK_SIZE / 2} {BLOCK_SIZE / 2}" mass="{_BLOCK_MASS}"
            friction="1 .02 .002" condim="4" rgba="{_COLORS[i]}"/>
    </body>"""
        for i in range(num_blocks)
    )
    welds = "".join(
        f'<weld body1="tool" body2="block{i}" active="false" solref=".02 1" solimp=".95 .99 .001"/>'
        for i in range(num_blocks)
    )
    servos = "".join(f'<position joint="joint{i + 1}" kp="{_STIFFNESS}" dampratio="1"/>' for i in range(NUM_JOINTS))
    return mujoco.MjModel.from_xml_string(f"""
<mujoco model="stacking">
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="5"/>
  <visual><global offwidth="960" offheight="720" azimuth="135" elevation="-25"/><quality shadowsize="2048"/></visual>
  <statistic center="0 0 .3" extent="1.25"/>
  <default>
    <joint armature=".1" damping="2"/>
    <default class="arm"><geom type="capsule" rgba=".82 .84 .87 1" contype="0" conaffinity="0" density="800"/></default>
    <default class="tool"><geom type="capsule" rgba=".35 .38 .42 1" density="400"/></default>
  </default>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".95 .96 .98" rgb2=".75 .8 .86" width="64" height="64"/>
    <texture name="floor" type="2d" builtin="checker" rgb1=".88 .89 .9" rgb2=".8 .81 .83" width="256" height="256"/>
    <material name="floor" texture="floor" texrepeat="8 8"/>
  </asset>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1" diffuse=".6 .6 .6"/>
    <light pos="2 -2 3" dir="-1 1 -1.5" diffuse=".4 .4 .4"/>
    <geom name="floor" type="plane" size="2 2 .1" material="floor" friction="1 .02 .002" condim="4"/>
    <geom type="cylinder" size=".11 .03" pos="0 0 .03" rgba=".35 .38 .42 1" contype="0" conaffinity="0"/>
    <body name="link1" gravcomp="1" childclass="arm">
      <joint name="joint1" axis="0 0 1"/>
      <geom fromto="0 0 .06 0 0 {SHOULDER_HEIGHT}" size=".07"/>
      <body name="link2" pos="0 0 {SHOULDER_HEIGHT}" gravcomp="1">
        <joint name="joint2" axis="0 1 0"/>
        <geom fromto="0 0 0 0 0 {UPPER_ARM / 2}" size=".06"/>
        <body name="link3" gravcomp="1">
          <joint name="joint3" axis="0 0 1"/>
          <geom fromto="0 0 {UPPER_ARM / 2} 0 0 {UPPER_ARM}" size=".055"/>
          <body name="link4" pos="0 0 {UPPER_ARM}" gravcomp="1">
            <joint name="joint4" axis="0 1 0"/>
            <geom fromto="0 0 0 0 0 {FOREARM / 2}" size=".05"/>
            <body name="link5" gravcomp="1">
              <joint name="joint5" axis="0 0 1"/>
              <geom fromto="0 0 {FOREARM / 2} 0 0 {FOREARM}" size=".045"/>
              <body name="link6" pos="0 0 {FOREARM}" gravcomp="1">
                <joint name="joint6" axis="0 1 0"/>
                <geom type="sphere" size=".045"/>
                <body name="tool" gravcomp="1" childclass="tool">
                  <joint name="joint7" axis="0 0 1"/>
                  <geom fromto="0 0 .03 0 0 {TOOL - 0.05}" size=".02"/>
                  <geom type="cylinder" fromto="0 0 {TOOL - 0.03} 0 0 {TOOL}" size=".025" rgba=".1 .1 .12 1"
                        contype="0" conaffinity="0"/>
                  <site name="{CUP}" pos="0 0 {TOOL}" size=".005"/>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>{blocks}
  </worldbody>
  <equality>{welds}</equality>
  <actuator>{servos}</actuator>
</mujoco>""")


def solve_joints(positions: np.ndarray) -> np.ndarray:
    """Joint angles that hold the cup at positions, pointing down with its elbow up.

    Args:
        positions: x, y, z of the cup in m, float[..., 3].

    Returns:
        float64[..., 7], in rad; the first is in (-π, π].

    Raises:
        ValueError: a position out of reach.
    """
    positions = np.asarray(positions, dtype=np.float64)
    radius = np.hypot(positions[..., 0], positions[..., 1])
    height = positions[..., 2] + TOOL - SHOULDER_HEIGHT
    bend = (radius**2 + height**2 - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM)
    if not (abs(bend) <= 1).all():
        wrong = positions[~(abs(bend) <= 1)].reshape(-1, 3)[0]
        raise ValueError(f"positions: expected points within reach of the arm, got {wrong.round(3).tolist()}")
    elbow = np.arccos(bend)
    shoulder = np.arctan2(radius, height) - np.arctan2(FOREARM * np.sin(elbow), UPPER_ARM + FOREARM * np.cos(elbow))
    joints = np.zeros((*positions.shape[:-1], NUM_JOINTS))
    joints[..., 0] = np.arctan2(positions[..., 1], positions[..., 0])
    joints[..., 1], joints[..., 3], joints[..., 5] = shoulder, elbow, np.pi - shoulder - elbow
    return joints


def find_cup(joints: np.ndarray) -> np.ndarray:
    """Positions of the cup, float64[..., 3], for joint angles float[..., 7] of which the 3rd and the 5th are 0."""
    joints = np.asarray(joints, dtype=np.float64)
    tilts = np.cumsum(joints[..., [1, 3, 5]], axis=-1)  # of the links, from upright
    lengths = np.array([UPPER_ARM, FOREARM, TOOL])
    radius = (lengths * np.sin(tilts)).sum(axis=-1)
    height = SHOULDER_HEIGHT + (lengths * np.cos(tilts)).sum(axis=-1)
    return np.stack([radius * np.cos(joints[..., 0]), radius * np.sin(joints[..., 0]), height], axis=-1)
