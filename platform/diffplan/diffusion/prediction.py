"""What a network predicts, and how to turn it into an estimate of the clean trajectory.

With signal a = sqrt(alpha_bar) and noise level s = sqrt(1 - alpha_bar), x_noisy = a x_clean + s noise, and the velocity
is v = a noise - s x_clean. Source: Ho et al. 2020, eq. 15; Salimans and Ho 2022, appendix D.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Prediction = Literal["clean", "noise", "velocity"]


def to_target(prediction: Prediction, x_clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """What the network should predict."""
    if prediction == "clean":
        return x_clean
    return noise if prediction == "noise" else signal * noise - sigma * x_clean


def to_clean(prediction: Prediction, output: Tensor, x_noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """The clean trajectory that a network output stands for."""
    if prediction == "clean":
        return output
    return (x_noisy - sigma * output) / signal if prediction == "noise" else signal * x_noisy - sigma * output
