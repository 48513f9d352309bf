"""A section of the report page as data; the templates in this package render it as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from diffplan.report.images import PictureRow

Mark = tuple[Literal["dot", "star"], str, str]
"""A mark of a legend: its shape, colour and meaning."""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        anchor: id for links.
        title: heading.
        kind: name of the macro in `templates/sections.html.j2` that renders it.
        content: arguments of the macro; empty if the stage has not run.
    """

    anchor: str
    title: str
    kind: Literal["scores", "data", "training", "pictures", "search", "making"]
    content: dict[str, Any] = field(default_factory=dict)


def make_picture_section(
    anchor: str,
    title: str,
    rows: Sequence[PictureRow] = (),
    *,
    introduction: str = "",
    legend: Sequence[Mark] = (),
    caption: str = "",
    absent: tuple[str, str] | None = None,
) -> Section:
    """A section of rows of pictures.

    Args:
        anchor: id for links.
        title: heading.
        rows: the pictures.
        introduction: text above them.
        legend: the marks in the pictures.
        caption: text below them.
        absent: the reason for missing pictures, and the path of the missing data.
    """
    content = {"introduction": introduction, "rows": rows, "legend": legend, "caption": caption, "absent": absent}
    return Section(anchor, title, "pictures", content)
