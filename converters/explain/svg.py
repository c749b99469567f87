"""Writes SVG elements as text.

Decides that whatever comes from outside is escaped, and how numbers are written: the same picture has the same bytes.
"""

from __future__ import annotations

import html
from typing import Final, NewType

Markup = NewType("Markup", str)
"""Text that is markup already; everything else is escaped."""

CHARACTER_WIDTH: Final = 0.63
"""Mean width of a character of a wide or bold sans-serif font, as a fraction of its size."""


def element(name: str, *content: Markup, **attributes: str | float) -> Markup:
    """Write an element. An underscore in an attribute's name stands for a hyphen, one at its end for nothing.

    >>> element("circle", cx=1.0, stroke_width="2")
    '<circle cx="1" stroke-width="2"/>'
    >>> element("g", text('<b>"'), class_="a")
    '<g class="a">&lt;b&gt;&quot;</g>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items()
    )
    if not content:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{''.join(content)}</{name}>")


def text(said: str) -> Markup:
    """Escape text; characters that XML forbids are left out."""
    return Markup(html.escape("".join(one for one in said if one.isprintable() or one == "\n")))


def number(value: float) -> str:
    """Write a coordinate: two decimals, none that are zero.

    >>> number(1.5), number(2.0), number(-0.001)
    ('1.5', '2', '0')
    """
    written = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if written in {"-0", ""} else written


def shortened(said: str, characters: int) -> str:
    """Cut the middle out of a text that is too long: names of layers differ at both ends.

    >>> shortened("block1.layer.conv", 11), shortened("conv", 11)
    ('block….conv', 'conv')
    """
    if len(said) <= characters:
        return said
    head = characters // 2
    return f"{said[:head]}…{said[len(said) - (characters - 1 - head) :]}"


def width_px(said: str, font_px: float) -> float:
    """Estimate how wide a text is."""
    return len(said) * CHARACTER_WIDTH * font_px


def _value(value: str | float) -> str:
    return text(value) if isinstance(value, str) else number(value)
