"""HTML of the report page: text is escaped here, and figures become images inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from diffplan.report.figures import figure_to_array

PNG_DPI, NUM_PNG_COLORS = 130, 128


@dataclass(frozen=True)
class Html:
    """A piece of finished HTML; a plain `str` is text and gets escaped."""

    source: str


@dataclass
class Section:
    """A section of the page.

    Attributes:
        anchor: id to link to.
        title: heading.
        parts: what is in it, in order.
    """

    anchor: str
    title: str
    parts: list[Html] = field(default_factory=list)

    def render(self) -> str:
        """The section as HTML."""
        body = "\n".join(part.source for part in self.parts)
        return f'<section id="{escape(self.anchor)}">\n<h2>{escape(self.title)}</h2>\n{body}\n</section>'


def render(content: str | Html) -> str:
    """HTML of a content: text escaped, HTML as it is."""
    if isinstance(content, Html):
        return content.source
    return escape(content).replace(" %", "&nbsp;%")  # a percent sign stays with its number


def paragraph(*contents: str | Html, kind: str = "") -> Html:
    """A paragraph of pieces of text and HTML; `kind` is a CSS class."""
    return Html(f"<p{_class(kind)}>{''.join(map(render, contents))}</p>")


def missing(stage: str, path: str) -> Html:
    """The line that stands for a stage that has not run."""
    return absent(f"Not here yet: the {stage} stage has not run", path)


def absent(sentence: str, path: str) -> Html:
    """A line that stands for something that is not there, and the path that it would have."""
    return paragraph(f"{sentence} (no ", code(path), ").", kind="missing")


def heading(text: str) -> Html:
    """A heading within a section."""
    return Html(f"<h3>{escape(text)}</h3>")


def code(text: str) -> Html:
    """Text set as code."""
    return Html(f"<code>{escape(text)}</code>")


def strong(text: str) -> Html:
    """Text set off from the rest."""
    return Html(f"<strong>{render(text)}</strong>")


def preformatted(text: str) -> Html:
    """Text with its line breaks kept."""
    return Html(f"<pre>{escape(text)}</pre>")


def details(summary: str, content: Html) -> Html:
    """Content that unfolds on a click."""
    return Html(f"<details><summary>{escape(summary)}</summary>{content.source}</details>")


def bar(share: float) -> Html:
    """A bar of a share between 0 and 1."""
    return Html(f'<span class="bar"><span style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></span></span>')


def key_figures(figures: Iterable[tuple[str, str, str]]) -> Html:
    """A row of large numbers, each with a label above and a note below."""
    cards = "".join(
        f'<div class="figure-card"><span class="label">{escape(label)}</span>'
        f'<span class="value">{escape(value)}</span><span class="note">{escape(note)}</span></div>'
        for label, value, note in figures
    )
    return Html(f'<div class="key-figures">{cards}</div>')


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str | Html]],
    *,
    marked: Iterable[int] = (),
    numeric: Iterable[int] = (),
) -> Html:
    """A table.

    Args:
        head: headings of the columns; all empty for none.
        rows: cells of each row.
        marked: rows to set off.
        numeric: columns to align to the right.
    """
    right, marked = set(numeric), set(marked)

    def cells(tag: str, contents: Sequence[str | Html]) -> str:
        return "".join(
            f"<{tag}{_class('number' if i in right else '')}>{render(c)}</{tag}>" for i, c in enumerate(contents)
        )

    body = "\n".join(
        f"<tr{_class('marked' if i in marked else '')}>{cells('td', row)}</tr>" for i, row in enumerate(rows)
    )
    header = f"<thead><tr>{cells('th', head)}</tr></thead>" if any(head) else ""
    return Html(f'<div class="scroll"><table>{header}<tbody>\n{body}\n</tbody></table></div>')


def grid(items: Iterable[Html], columns: Literal["two", "three", "four", "five"]) -> Html:
    """Items side by side; fewer columns on narrow screens."""
    return Html(f'<div class="grid {columns}">' + "\n".join(item.source for item in items) + "</div>")


def stack(*items: Html) -> Html:
    """Items one below the other, as one item of a grid."""
    return Html('<div class="stack">' + "\n".join(item.source for item in items) + "</div>")


def picture(image: Html, caption: str | Html = "", *, framed: bool = False) -> Html:
    """An image with a caption; charts are framed."""
    text = f"<figcaption>{render(caption)}</figcaption>" if caption else ""
    return Html(f"<figure{_class('framed' if framed else '')}>{image.source}{text}</figure>")


def svg(figure: Figure, description: str) -> Html:
    """A figure as a vector image; for lines, dots and text."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "diffplan"}):  # the same figure gives the same bytes
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _image("svg+xml", buffer.getvalue(), description)


def png(figure: Figure, description: str) -> Html:
    """A figure as pixels of a few colours; for pictures of mazes, which have many small parts."""
    image = Image.fromarray(figure_to_array(figure, PNG_DPI)).quantize(NUM_PNG_COLORS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _image("png", buffer.getvalue(), description)


def _image(kind: str, content: bytes, description: str) -> Html:
    data = base64.b64encode(content).decode()
    return Html(f'<img alt="{escape(description)}" src="data:image/{kind};base64,{data}">')


def _class(name: str) -> str:
    return f' class="{escape(name)}"' if name else ""
