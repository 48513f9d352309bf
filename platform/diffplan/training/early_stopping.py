"""When to stop before the last step: the held-out loss has not improved for a while."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Counts validations without a new best loss; a part of the state of a run, so that a resumed one stops as well.

    Attributes:
        patience: validations without improvement after which training stops; 0 for never.
        best: lowest loss so far.
        num_without_improvement: validations since then.
    """

    patience: int
    best: float = math.inf
    num_without_improvement: int = 0

    def update(self, loss: float) -> None:
        """Take in a validation; a loss that is no number is no improvement."""
        if loss < self.best:
            self.best, self.num_without_improvement = loss, 0
        else:
            self.num_without_improvement += 1

    @property
    def is_due(self) -> bool:
        """Whether to stop."""
        return 0 < self.patience <= self.num_without_improvement

    def state_dict(self) -> dict[str, float]:
        """What changes."""
        return {"best": self.best, "num_without_improvement": self.num_without_improvement}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a state."""
        self.best, self.num_without_improvement = float(state["best"]), int(state["num_without_improvement"])
