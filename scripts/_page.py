"""One self-contained HTML page: style, pictures and the viewer's script are inside, nothing is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from ._drawing import Scene, still


class Page:
    """A page that grows section by section; texts are escaped, blocks of this module's functions are not."""

    def __init__(self, title: str, lead: str, *, kind: str) -> None:
        self.title, self.lead, self.kind = title, lead, kind
        self.parts: list[str] = []

    def add(self, *blocks: str) -> None:
        """Blocks before the first section, or at the end of the last one."""
        self.parts.extend(blocks)

    def section(self, heading: str, *blocks: str) -> None:
        """A section with its heading."""
        self.parts.append(f"<section><h2>{escape(heading)}</h2>{''.join(blocks)}</section>")

    def render(self) -> str:
        """The whole page."""
        from .. import __version__

        body = "\n".join(self.parts)
        script = f"<script>{_asset('viewer.js')}</script>" if 'class="viewer"' in body else ""
        return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(self.title)}</title><style>{_asset("page.css")}</style></head>
<body>
<header><p class="kind">{escape(self.kind)}</p><h1>{escape(self.title)}</h1>
<p class="lead">{escape(self.lead)}</p></header>
<main>{body}</main>
<footer>Made by tesseral {__version__}. This page needs no network.</footer>
{script}</body>
</html>
"""


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """A block of commands or code."""
    return f"<pre>{escape(text)}</pre>"


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: (value, unit, what it is)."""
    one = "<div><b>{}<small>{}</small></b><span>{}</span></div>"
    return f'<div class="tiles">{"".join(one.format(*map(escape, item)) for item in items)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every column but the first is right-aligned."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ["", *[' class="number"'] * (len(cells) - 1)]
        return "<tr>" + "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for c, k in zip(cells, kinds, strict=True)) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def figure(content: str, caption: str) -> str:
    """A picture (SVG text or another block) with its caption."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def pair(*figures: str) -> str:
    """Figures side by side where the window is wide enough."""
    return f'<div class="pair">{"".join(figures)}</div>'


def viewer(scene: Scene, caption: str, *, name: str) -> str:
    """A scene that can be turned and played; without JavaScript and on paper the still picture shows."""
    data = json.dumps(scene.as_dict(), separators=(",", ":"))
    controls = ""
    if last := len(scene.frames) - 1:
        slider = f'<input type="range" min="0" max="{last}" value="0" aria-label="frame">'
        controls = f'<div class="controls"><button type="button">Play</button>{slider}</div>'
    live = f'<script type="application/json">{data}</script><canvas></canvas>{controls}'
    return figure(f'<div class="viewer">{still(scene, name=name, cloud=24)}{live}</div>', caption)


def number(value: float | str | None, digits: int = 3) -> str:
    """A number with that many significant digits, without exponent where it can be read."""
    if value is None or math.isnan(float(value)):
        return "–"
    text = f"{float(value):.{digits}g}"
    return f"{float(value):.0f}" if "e+" in text and abs(float(value)) < 1e7 else text.replace("-", "−")


def _asset(name: str) -> str:
    """Text of a file in `assets/`."""
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
