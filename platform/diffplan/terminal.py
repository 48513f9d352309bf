"""Drawings for terminals: histograms, density maps and tables of characters, without colours."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np

MIN_WIDTH, MAX_WIDTH = 40, 120


@dataclass(frozen=True)
class Characters:
    """What drawings are made of.

    Attributes:
        bars: from an empty to a full piece of a bar.
        shades: from nothing to dense; none of them is `wall`.
        wall: a piece of a wall.
        axes: vertical line, tick, corner and horizontal line.
        ellipsis: stands for what is left out.
    """

    bars: str
    shades: str
    wall: str
    axes: str
    ellipsis: str


UNICODE = Characters(bars=" ▁▂▃▄▅▆▇█", shades=" ·░▒▓", wall="█", axes="│┤└─", ellipsis="…")
ASCII = Characters(bars=" .:#", shades=" .:+@", wall="#", axes="|+`-", ellipsis="...")


def choose_characters(stream: TextIO) -> Characters:
    """The best characters that a stream can encode."""
    try:
        "".join((UNICODE.bars, UNICODE.shades, UNICODE.wall, UNICODE.axes, UNICODE.ellipsis)).encode(
            getattr(stream, "encoding", None) or "ascii"
        )
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def find_width() -> int:
    """Columns to draw in: those of the terminal within reason, or `$COLUMNS`, or 80 where there is no terminal."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, MIN_WIDTH), MAX_WIDTH)


def shorten_number(value: float, width: int = 7) -> str:
    """A number in at most `width` characters (7 or more), with as many digits as there is room for."""
    value = float(value)
    if not np.isfinite(value):
        return str(value)
    if value == int(value) and len(plain := str(int(value))) <= width:
        return plain
    if 1e-3 <= abs(value) < 10 ** (width - 2):
        texts = (f"{value:.{digits}f}" for digits in (4, 3, 2, 1, 0))
    else:
        parts = (f"{value:.{digits}e}".split("e") for digits in (2, 1, 0))
        texts = (f"{mantissa}e{int(exponent)}" for mantissa, exponent in parts)
    return next(text for text in texts if len(text) <= width)


def format_bytes(num_bytes: int) -> str:
    """A size as people read it."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.2f} GB"


def format_duration(seconds: float) -> str:
    """A time as people read it: in the largest unit of which there are at least two, with two digits or more."""
    for name, size in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}" if seconds < 10 * size else f"{seconds / size:,.0f} {name}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def draw_histogram(values: np.ndarray, width: int, height: int, characters: Characters) -> list[str]:
    """A histogram of upright bars over an axis from the least to the greatest value.

    Args:
        values: finite numbers, any[n]; whole numbers of a small range get a bar each.
        width: columns to fill.
        height: lines of the bars; three more hold the axis.
        characters: what to draw with.
    """
    low, high = values.min(), values.max()
    if low == high:
        return [f"{len(values):,} times {shorten_number(low)}"]
    label = max(len(f"{len(values):,}"), 5)
    inner = max(width - label - 2, 8)
    whole = bool((values == np.round(values)).all()) and high - low < inner
    num_bins = int(high - low) + 1 if whole else inner
    edges = np.linspace(low - 0.5, high + 0.5, num_bins + 1) if whole else np.linspace(low, high, num_bins + 1)
    counts, _ = np.histogram(values, edges)
    bar = inner // num_bins
    steps = len(characters.bars) - 1
    filled = np.ceil(counts / counts.max() * height * steps).astype(int)
    vertical, tick, corner, horizontal = characters.axes
    lines = []
    for level in reversed(range(height)):
        pieces = [characters.bars[min(max(f - level * steps, 0), steps)] * bar for f in filled.tolist()]
        mark = f"{counts.max():>{label},} {tick}" if level == height - 1 else f"{'':>{label}} {vertical}"
        lines.append(f"{mark}{''.join(pieces)}".rstrip())
    lines.append(f"{0:>{label}} {corner}{horizontal * (num_bins * bar)}")
    left, right = shorten_number(low), shorten_number(high)
    gap = max(num_bins * bar - len(left), len(right) + 1)
    lines.append(f"{'':>{label + 2}}{left}{right:>{gap}}")
    return lines


def draw_density(counts: np.ndarray, walls: np.ndarray | None, characters: Characters) -> list[str]:
    """A map of how often each place was visited.

    Args:
        counts: visits, int[lines, columns], one character each.
        walls: which characters are walls, bool[lines, columns]; None for a frame around the map.
        characters: what to draw with.
    """
    shades = np.array(list(characters.shades))
    drawn = shades[find_shades(counts, len(shades))]
    if walls is not None:
        drawn = np.where(walls & (counts == 0), characters.wall, drawn)
        return ["".join(line).rstrip() for line in drawn]
    vertical, _, _, horizontal = characters.axes
    corners = "┌┐└┘" if characters is UNICODE else "++++"
    edge = horizontal * counts.shape[1]
    middle = [f"{vertical}{''.join(line)}{vertical}" for line in drawn]
    return [f"{corners[0]}{edge}{corners[1]}", *middle, f"{corners[2]}{edge}{corners[3]}"]


def find_shades(counts: np.ndarray, num_shades: int) -> np.ndarray:
    """Shade of each place, int[...]: 0 for none, then equal shares of the places that were visited, by density."""
    visited = counts[counts > 0]
    if not visited.size:
        return np.zeros(counts.shape, int)
    dense = np.quantile(visited, 0.95)  # a few places where episodes begin would leave the rest pale
    steps = np.ceil(counts / dense * (num_shades - 1)).astype(int)
    return np.clip(steps, 0, num_shades - 1)


def draw_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """A table; the first `left` columns are aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    aligned = [f"{'<' if i < left else '>'}{width}" for i, width in enumerate(widths)]
    return [
        "  ".join(format(cell, how) for cell, how in zip(line, aligned, strict=True)).rstrip()
        for line in (header, *rows)
    ]


def draw_beside(blocks: Sequence[Sequence[str]], width: int) -> list[str]:
    """Blocks of lines next to each other, each `width` columns wide."""
    height = max(map(len, blocks))
    padded = [[*block, *[""] * (height - len(block))] for block in blocks]
    return ["".join(f"{line:<{width}}" for line in lines).rstrip() for lines in zip(*padded, strict=True)]


def shorten_text(text: str, width: int, characters: Characters) -> str:
    """A text of at most `width` columns, cut at its end."""
    return text if len(text) <= width else text[: width - len(characters.ellipsis)] + characters.ellipsis


def describe_shades(characters: Characters) -> list[str]:
    """What the shades of `draw_density` mean."""
    return [f"visits, few to many: {' '.join(characters.shades[1:])}"]
