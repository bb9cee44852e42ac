"""One HTML file that holds everything: style, tables and pictures. It opens without network and without scripts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pelagia.core.files import write_bytes
from pelagia.errors import ImageError, OptionError

__all__ = ["Gallery", "Heading", "Numbers", "Picture", "Section", "Table", "Text", "render", "write_report"]

#: A table with so few columns is drawn as wide as it needs; a wider one takes the whole width.
_SLIM_COLUMNS = 3

#: Pictures are shrunk to this before they are put into the file.
LONGEST_SIDE_PX = 1600


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading; those of level 2 make the table of contents, level 3 does not."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs, separated by empty lines. Plain text: markup is shown, not obeyed."""

    text: str


@dataclass(frozen=True, slots=True)
class Numbers:
    """Headline numbers as cards: (name, value) each."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Cells are text or numbers; numbers (and text that reads as one) stand right, floats with three decimals."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture: a file (any format that Pillow reads), or an array [H, W], [H, W, 1] or [H, W, 3] uint8."""

    source: str | Path | NDArray[np.uint8]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures side by side, as many as the screen has room for. `wide` gives each the whole width."""

    pictures: Sequence[Picture]
    wide: bool = False


Section: TypeAlias = Heading | Text | Numbers | Table | Gallery


def write_report(path: str | Path, title: str, sections: Sequence[Section], *, subtitle: str = "") -> Path:
    """Write the report, atomically.

    Raises:
        ImageError: a picture cannot be read.
        OptionError: a table's rows do not fit its header, an array is no picture, or the file cannot be written.
    """
    page = render(title, sections, subtitle=subtitle)
    write_bytes(Path(path), page.encode(errors="backslashreplace"))  # names of files need not be Unicode
    return Path(path)


def render(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The HTML of the report as text. Errors as `write_report`."""
    body: list[str] = []
    contents: list[tuple[str, str]] = []
    for section in sections:
        anchor = ""
        if isinstance(section, Heading) and section.level <= 2:
            anchor = f"s{len(contents) + 1}"
            contents.append((anchor, section.text))
        body.append(_section(section, anchor))
    navigation = ""
    if len(contents) > 2:
        links = "".join(f'<a href="#{anchor}">{_escape(text)}</a>' for anchor, text in contents)
        navigation = f"<nav>{links}</nav>"
    lead = f'<p class="lead">{_escape(subtitle)}</p>' if subtitle else ""
    return _PAGE.format(
        title=_escape(title), style=_STYLE, header=f"<h1>{_escape(title)}</h1>{lead}{navigation}", body="\n".join(body)
    )


def _section(section: Section, anchor: str) -> str:
    if isinstance(section, Heading):
        level = min(max(section.level, 2), 4)
        mark = f' id="{anchor}"' if anchor else ""
        return f"<h{level}{mark}>{_escape(section.text)}</h{level}>"
    if isinstance(section, Text):
        parts = [part for part in section.text.split("\n\n") if part.strip()]
        return "\n".join(f"<p>{_escape(part.strip())}</p>" for part in parts)
    if isinstance(section, Numbers):
        cards = "".join(f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}</dd></div>" for name, value in section.items)
        return f'<dl class="numbers">{cards}</dl>'
    if isinstance(section, Table):
        return _table(section)
    figures = "\n".join(_figure(picture) for picture in section.pictures)
    return f'<div class="gallery{" wide" if section.wide else ""}">\n{figures}\n</div>'


def _table(table: Table) -> str:
    for position, row in enumerate(table.rows):
        if len(row) != len(table.header):
            raise OptionError(f"row {position} of the table has {len(row)} cells for {len(table.header)} columns")
    cells = [[_cell(value) for value in row] for row in table.rows]
    numeric = [bool(cells) and all(row[column][1] for row in cells) for column in range(len(table.header))]
    caption = f"<caption>{_escape(table.caption)}</caption>" if table.caption else ""
    head = "".join(_tagged("th", _escape(text), right) for text, right in zip(table.header, numeric, strict=True))
    body = "\n".join(
        "<tr>" + "".join(_tagged("td", text, right) for (text, _), right in zip(row, numeric, strict=True)) + "</tr>"
        for row in cells
    )
    slim = " slim" if len(table.header) <= _SLIM_COLUMNS else ""
    inner = f"{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll{slim}" tabindex="0"><table>{inner}</table></div>'


def _tagged(tag: str, text: str, right: bool) -> str:
    return f'<{tag} class="n">{text}</{tag}>' if right else f"<{tag}>{text}</{tag}>"


def _cell(value: object) -> tuple[str, bool]:
    """The text of a cell, and whether it is a number (or the dash that stands for none)."""
    if isinstance(value, float | np.floating):
        return ("-" if np.isnan(value) else f"{value:.3f}"), True
    text = str(value)
    bare = text.removesuffix("%").replace(",", "").strip()
    return _escape(text), bare in ("", "-") or bare.lstrip("+-").replace(".", "", 1).isdigit()


def _figure(picture: Picture) -> str:
    kind, data, (width, height) = _load(picture.source)
    caption = f"<figcaption>{_escape(picture.caption)}</figcaption>" if picture.caption else ""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    name = _escape(picture.caption or "figure")
    size = f'width="{width}" height="{height}" style="max-width: {width}px"'
    return f'<figure><div><img src="{source}" alt="{name}" {size} loading="lazy"></div>{caption}</figure>'


def _load(source: str | Path | NDArray[Any]) -> tuple[str, bytes, tuple[int, int]]:
    """Kind, bytes and size in pixels; small PNG and JPEG files are taken as they are."""
    if isinstance(source, np.ndarray):
        return _encode(_from_array(source), "jpeg")
    path = Path(source)
    try:
        with Image.open(path) as image:
            kind = (image.format or "").lower()
            if kind in ("png", "jpeg") and max(image.size) <= LONGEST_SIDE_PX:
                return kind, path.read_bytes(), image.size
            return _encode(image.convert("RGB"), "png" if kind == "png" and max(image.size) <= LONGEST_SIDE_PX else "jpeg")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"this picture cannot be put into the report ({error}); give a PNG or JPEG file", where=path) from error


def _from_array(array: NDArray[Any]) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3))) or array.size == 0:
        raise OptionError(f"a picture must be uint8 of shape [H, W], [H, W, 1] or [H, W, 3], got {array.dtype} {list(shape)}")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if shape[-1] == 1 and array.ndim == 3 else array)).convert("RGB")


def _encode(image: Image.Image, kind: str) -> tuple[str, bytes, tuple[int, int]]:
    image.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 88} if kind == "jpeg" else {}))
    return kind, buffer.getvalue(), image.size


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>{header}</header>
<main>
{body}
</main>
<footer>Made by Pelagia</footer>
</body>
</html>
"""

_STYLE = """
:root { --page: #f6f8f9; --card: #ffffff; --ink: #1f2a33; --soft: #5a6872; --line: #dde4e8; --accent: #00628f; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12181d; --card: #1b242b; --ink: #e6edf1; --soft: #9fb0bb; --line: #2f3b44; --accent: #6cc3ee; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2rem); }
header { padding-top: clamp(1.5rem, 5vw, 3rem); }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); line-height: 1.2; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 0.8rem; padding-top: 0.6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.8rem 0 0.6rem; }
h4 { font-size: 1rem; margin: 1.4rem 0 0.4rem; }
p { max-width: 46rem; margin: 0.7rem 0; overflow-wrap: anywhere; }
.lead { color: var(--soft); margin: 0.5rem 0 0; }
nav { display: flex; flex-wrap: wrap; gap: 0.4rem; margin-top: 1.2rem; }
nav a { color: var(--accent); background: var(--card); border: 1px solid var(--line); border-radius: 999px;
  padding: 0.2rem 0.85rem; text-decoration: none; font-size: 0.92rem; }
nav a:hover, nav a:focus-visible { border-color: var(--accent); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: 0.8rem; margin: 1.2rem 0; }
.numbers div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 0.75rem 1rem; }
.numbers dt { color: var(--soft); font-size: 0.85rem; }
.numbers dd { margin: 0; font-size: 1.55rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; }
caption { text-align: left; padding: 0.7rem 0.9rem 0.4rem; color: var(--soft); }
.slim { width: fit-content; max-width: 100%; }
.slim th:not(:first-child), .slim td:not(:first-child) { padding-left: 2.5rem; }
th, td { padding: 0.45rem 0.9rem; text-align: left; white-space: nowrap; }
td:first-child { white-space: normal; min-width: 7rem; overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
tbody tr + tr td { border-top: 1px solid var(--line); }
tbody tr:hover td { background: color-mix(in srgb, var(--accent) 7%, transparent); }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 1rem; margin: 1rem 0;
  align-items: start; }
.gallery.wide { grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
figure div { background: #ffffff; padding: 0.5rem; overflow-x: auto; }
figure img { display: block; width: 100%; height: auto; margin: 0 auto; }
.gallery.wide img { min-width: min(640px, 170vw); }
figcaption { padding: 0.55rem 0.9rem; color: var(--soft); font-size: 0.9rem; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: 0.85rem; padding-top: 2.5rem; padding-bottom: 2rem; }
@media print { body { background: #fff; } figure, .numbers div, tr { break-inside: avoid; } nav { display: none; } }
"""
