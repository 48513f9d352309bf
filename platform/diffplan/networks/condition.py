"""Conditions of a network: a return or a task, which may be withheld.

A network that is trained with and without its condition can be guided without a classifier.

Source: Ho & Salimans 2022 (classifier-free guidance); Ajay et al. 2023, section 3.2 (returns and constraints as
conditions of a planner).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffplan.config import NetworkConfig


class ConditionEmbedding(nn.Module):
    """Adds the embedding of a condition to that of the diffusion step; has no parameters without a condition.

    Args:
        config: the kind of condition; `condition` and `num_tasks` are used.
        dim: features of the embedding.
    """

    def __init__(self, config: NetworkConfig, dim: int) -> None:
        super().__init__()
        self.kind = config.condition
        self.num_tasks = config.num_tasks
        if self.kind == "returns":
            self.returns = nn.Sequential(nn.Linear(1, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))
            self.withheld = nn.Parameter(torch.zeros(dim))
        elif self.kind == "task":
            self.tasks = nn.Embedding(self.num_tasks + 1, dim)  # the last is for withheld labels
            nn.init.normal_(self.tasks.weight, std=0.02)  # the default, 1, would dominate the diffusion step

    def forward(
        self,
        embedding: Float[Tensor, "#batch dim"],
        condition: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch dim"]:
        """The embedding of the diffusion step with that of the condition added.

        Args:
            embedding: embedding of the diffusion step.
            condition: condition of each row: a return, scaled to about [0, 1] over the dataset, or the label of a task.
                NaN, or a label below 0, withholds it. None withholds all.

        Raises:
            ValueError: a condition for an unconditioned network, or an unknown label.
        """
        if self.kind == "none":
            if condition is not None:
                raise ValueError("condition: this network takes none (its config has network.condition none)")
            return embedding
        if self.kind == "returns":
            return embedding + (self.withheld if condition is None else self._embed_returns(condition))
        if condition is None:
            return embedding + self.tasks.weight[self.num_tasks]
        return embedding + self._embed_tasks(condition)

    def _embed_returns(self, returns: Tensor) -> Tensor:
        returns = returns.to(self.withheld.dtype)
        # Replace NaN first: its gradient would be NaN even where `where` masks the value.
        embedded = self.returns(returns.nan_to_num(nan=0.0)[:, None])
        return torch.where(returns.isnan()[:, None], self.withheld, embedded)

    def _embed_tasks(self, labels: Tensor) -> Tensor:
        withheld = labels.isnan() | (labels < 0)
        known = torch.where(withheld, torch.full_like(labels, self.num_tasks), labels).long()
        if bool(((known >= self.num_tasks) & ~withheld).any()):
            label = int(known.max())
            raise ValueError(f"condition: expected task labels below {self.num_tasks}, got {label}")
        return self.tasks(known)
