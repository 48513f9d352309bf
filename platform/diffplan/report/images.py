"""Figures as images inside the report page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

PNG_DPI, NUM_PNG_COLORS = 130, 128


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        source: the image as a `data:` URL.
        description: alternative text.
        caption: text below it.
        framed: whether it is on a card, as charts are.
    """

    source: str
    description: str
    caption: str = ""
    framed: bool = False


@dataclass(frozen=True)
class PictureRow:
    """Pictures side by side; fewer columns on narrow screens."""

    pictures: list[Picture]
    columns: Literal["two", "three", "four", "five"]
    title: str = ""


def svg(figure: Figure, description: str, caption: str = "") -> Picture:
    """A framed chart as a vector image; for lines, dots and text."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "diffplan"}):  # the same figure gives the same bytes
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return Picture(_to_url("svg+xml", buffer.getvalue()), description, caption, framed=True)


def png(figure: Figure, description: str, caption: str = "", *, framed: bool = False) -> Picture:
    """A figure as a raster image of few colours; for pictures with many small parts."""
    image = Image.fromarray(figure_to_array(figure, PNG_DPI)).quantize(NUM_PNG_COLORS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return Picture(_to_url("png", buffer.getvalue()), description, caption, framed)


def figure_to_array(figure: Figure, dpi: int = 80) -> np.ndarray:
    """A figure as pixels, uint8[height, width, 3]."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _to_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
