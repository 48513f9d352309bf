"""Kinds of network prediction, and their conversion to an estimate of the clean trajectory.

With signal a = sqrt(alpha_bar) and noise level s = sqrt(1 - alpha_bar), x_noisy = a x_clean + s noise, and the velocity
is v = a noise - s x_clean. Source: Ho et al. 2020, eq. 15; Salimans and Ho 2022, appendix D.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Prediction = Literal["clean", "noise", "velocity"]


def to_target(
    prediction: Prediction,
    x_clean: Float[Tensor, "*plans"],
    noise: Float[Tensor, "*plans"],
    signal: Tensor,
    sigma: Tensor,
) -> Float[Tensor, "*plans"]:
    """The training target of the network."""
    if prediction == "clean":
        return x_clean
    return noise if prediction == "noise" else signal * noise - sigma * x_clean


def to_clean(
    prediction: Prediction,
    output: Float[Tensor, "*plans"],
    x_noisy: Float[Tensor, "*plans"],
    signal: Tensor | float,
    sigma: Tensor | float,
) -> Float[Tensor, "*plans"]:
    """The clean trajectory that corresponds to a network output."""
    if prediction == "clean":
        return output
    return (x_noisy - sigma * output) / signal if prediction == "noise" else signal * x_noisy - sigma * output
