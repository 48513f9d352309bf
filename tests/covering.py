"""Few rows of a large product of parameters."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def cover_pairs(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Choose rows of the product of axes until any two values of different axes have a row in common.

    Each row is the first of those that add the most pairs, so that the same axes always give the same rows.
    """
    rows = [set(combinations(enumerate(row), 2)) for row in product(*map(range, map(len, axes)))]
    missing: set[tuple[tuple[int, int], tuple[int, int]]] = set().union(*rows)
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(row & missing))
        missing -= best
        places = dict(place for pair in best for place in pair)
        chosen.append(tuple(axis[places[i]] for i, axis in enumerate(axes)))
    return chosen
