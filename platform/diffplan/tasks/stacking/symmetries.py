"""Symmetries of block stacking: the scene can be turned about the arm's axis, and its blocks change places."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffplan.config import EnvConfig
from diffplan.tasks.contracts import Symmetry
from diffplan.tasks.stacking.columns import find_space

if TYPE_CHECKING:
    from diffplan_envs.stacking_spaces import StackingSpace


def make_turns(env: EnvConfig) -> Symmetry:
    """Turns of the whole scene by a random angle.

    Joint angles of a turned scene stay within half a turn of 0, as far as they did; so windows in which the first joint
    turns further are not changed.
    """
    space = find_space(env)

    def turn(observations: Tensor, actions: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        observations, actions = observations.clone(), actions.clone()
        has_actions = actions.shape[2] > 0
        if space.name == "cup":
            angles = (2 * draws[:, 0] - 1) * math.pi
            _turn_places(observations[:, :, :2], angles)
            if has_actions:
                _turn_places(actions[:, :, :2], angles)
        else:
            angles = _draw_turns(observations[:, :, 0], draws[:, 0])
            observations[:, :, 0] += angles[:, None]
            if has_actions:
                actions[:, :, 0] += angles[:, None]
        for block in _view_blocks(observations, space).unbind(2):
            _turn_places(block[:, :, :2], angles)
            if space.name == "joints":
                _turn_quaternions(block[:, :, 3:7], angles)
        return observations, actions

    return Symmetry(num_draws=1, apply=turn)


def make_exchanges(env: EnvConfig) -> Symmetry:
    """Exchanges of blocks, which all look alike: a random permutation."""
    space = find_space(env)

    def exchange(observations: Tensor, actions: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        order = draws.argsort(dim=1)
        blocks = _view_blocks(observations, space)
        moved = blocks.gather(2, order[:, None, :, None].expand(blocks.shape)).flatten(2)
        observations = torch.cat([observations[:, :, : space.num_arm], moved], dim=2)
        if actions.shape[2]:
            held = actions[:, :, space.num_arm :]
            held = held.gather(2, order[:, None].expand(held.shape))
            actions = torch.cat([actions[:, :, : space.num_arm], held], dim=2)
        return observations, actions

    return Symmetry(num_draws=space.num_blocks, apply=exchange)


def _view_blocks(observations: Tensor, space: StackingSpace) -> Tensor:
    """The columns of each block, a view float[windows, horizon, blocks, columns]."""
    return observations[:, :, space.num_arm :].unflatten(2, (space.num_blocks, space.num_each))


def _draw_turns(first_joint: Tensor, draws: Tensor) -> Tensor:
    low, high = -math.pi - first_joint.amin(dim=1), math.pi - first_joint.amax(dim=1)
    return torch.where(high > low, low + (high - low) * draws, 0.0)


def _turn_places(places: Tensor, angles: Tensor) -> None:
    """Turn places float[windows, horizon, 2] in place, by angles float[windows]."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    x, y = places[:, :, 0].clone(), places[:, :, 1].clone()
    places[:, :, 0], places[:, :, 1] = cos * x - sin * y, sin * x + cos * y


def _turn_quaternions(quaternions: Tensor, angles: Tensor) -> None:
    """Turn orientations (w, x, y, z), float[windows, horizon, 4], about the z axis in place."""
    cos, sin = (angles / 2).cos()[:, None], (angles / 2).sin()[:, None]
    w, x, y, z = (quaternions[:, :, i].clone() for i in range(4))
    turned = (cos * w - sin * z, cos * x - sin * y, cos * y + sin * x, cos * z + sin * w)
    for i, value in enumerate(turned):
        quaternions[:, :, i] = value
