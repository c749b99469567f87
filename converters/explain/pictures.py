"""Pictures that explain a conversion, as SVG text: candidates, sensitive layers, calibration ranges.

Decides how they look, in light and in dark, and for people who do not tell all colours apart: what a mark means is said by
its shape, too. The colours are those of Okabe and Ito. No library, no script; everything that is written is escaped. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .axis import Axis, Form, Unit, axis_of, figure, labels, linear_axis
from .label_places import FONT_PX, Box, Spot, place_labels
from .svg import Markup, element, number, shortened, text, width_px

WIDTH: Final = 760.0
ROWS_MAX: Final = 40
BEYOND: Final = 6.0
"""So many times the distance from the best candidate to the floor are drawn to scale."""
LABELS_MAX: Final = 24
"""With more candidates than this only those on the front, the chosen one and the source are named."""
STYLE: Final = """
.pic{--ink:#1b1f24;--soft:#5b6570;--line:#d5dae0;--blue:#0072b2;--orange:#c76a00;--grey:#8a939c;--paper:#fff;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-size:11px;max-width:100%;height:auto}
.pic text{fill:var(--ink)}.pic .soft{fill:var(--soft)}.pic .strong{font-weight:600}
.pic .grid{stroke:var(--line);stroke-width:1}.pic .base{stroke:var(--soft);stroke-width:1}
.pic .front{fill:none;stroke:var(--blue);stroke-width:1.5;opacity:.45}
.pic .floor{stroke:var(--orange);stroke-width:1.5;stroke-dasharray:6 4}.pic .lead{stroke:var(--soft);stroke-width:.75}
.pic .chosen{fill:var(--blue);stroke:var(--blue)}.pic .fits{fill:var(--paper);stroke:var(--blue);stroke-width:2}
.pic .refused{fill:none;stroke:var(--orange);stroke-width:2}.pic .source{fill:var(--grey);stroke:var(--grey)}
.pic .bar{fill:var(--blue)}.pic .under{fill:var(--grey)}.pic .range{stroke:var(--blue);stroke-width:6}
.pic .unsettled{stroke:var(--orange);stroke-width:6;stroke-dasharray:4 2}
@media (prefers-color-scheme:dark){.pic{--ink:#e6e9ec;--soft:#a3adb7;--line:#343b43;--blue:#56b4e9;--orange:#f0a13a;
--grey:#8a939c;--paper:#15181c}}
"""


class Standing(enum.Enum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    FITS = "meets every constraint"
    REFUSED = "refused"
    SOURCE = "as it came"


class Better(enum.Enum):
    """Which way a metric is better."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Mark:
    """One candidate: `cost` (latency or bytes) and `metric`, both finite."""

    label: str
    cost: float
    metric: float
    standing: Standing


@dataclass(frozen=True, slots=True)
class Scatter:
    """Candidates by cost and metric. `floor` is the worst metric that is allowed."""

    title: str
    cost_title: str
    cost_unit: Unit
    metric_title: str
    marks: tuple[Mark, ...]
    floor: float | None = None
    better: Better = Better.HIGHER


@dataclass(frozen=True, slots=True)
class Bar:
    """One layer and its value; `note` is written after it."""

    label: str
    value: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Range:
    """One tensor: its least and greatest value, after how many of the samples they had settled (None: they had not)."""

    label: str
    low: float
    high: float
    needed: int | None
    samples: int


def draw_scatter(scatter: Scatter) -> Markup:
    """Draw candidates: cheaper to the left, better above; the front of those that none beats in both; the floor."""
    left, top, right, bottom = 64.0, 34.0, WIDTH - 18, 352.0
    marks = scatter.marks
    across = axis_of([one.cost for one in marks], left, right)
    up = _metric_axis(scatter, bottom, top)
    parts = [*_grid(across, up, scatter), _front(scatter, across, up)]
    taken = []
    if scatter.floor is not None:
        y = up.place(scatter.floor)
        said = f"{'floor' if scatter.better is Better.HIGHER else 'ceiling'} {scatter.floor:.4g}"
        parts += [
            element("line", class_="floor", x1=left, x2=right, y1=y, y2=y),
            element("text", text(said), x=right - 4, y=y - 5, text_anchor="end", class_="soft"),
        ]
        taken.append(Box(left, y - 1, right, y + 1))
        taken.append(Box(right - width_px(said, FONT_PX) - 8, y - 17, right, y))
    order = sorted(marks, key=lambda one: list(Standing).index(one.standing))
    front = {id(one) for one in front_of(scatter)}
    named = [
        one
        for one in order
        if len(marks) <= LABELS_MAX or id(one) in front or one.standing in {Standing.CHOSEN, Standing.SOURCE}
    ]
    others = [_room(across.place(one.cost), up.place(one.metric)) for one in order if one not in named]
    spots = [Spot(across.place(one.cost), up.place(one.metric), _named(one, up)) for one in named]
    for placed in place_labels(spots, Box(left, top - 14, right + 14, bottom), [*taken, *others]):
        strong = any(
            one.standing is Standing.CHOSEN and _named(one, up) == placed.spot.label for one in named
        )
        box = placed.box
        if placed.leads:
            end = box.left if box.left > placed.spot.x else min(placed.spot.x, box.right)
            middle = (box.top + box.bottom) / 2
            parts.append(
                element("line", class_="lead", x1=placed.spot.x, y1=placed.spot.y, x2=end, y2=middle)
            )
        anchor, at = ("end", box.right - 2) if box.right <= placed.spot.x else ("start", box.left + 2)
        parts.append(
            element(
                "text",
                text(placed.spot.label),
                x=at,
                text_anchor=anchor,
                y=box.bottom - 4,
                class_="strong" if strong else "name",
            )
        )
    # Marks are drawn over lines, the chosen one over all.
    parts += [_mark(one, across.place(one.cost), up.place(one.metric), scatter) for one in reversed(order)]
    parts += _legend([one for one in Standing if any(mark.standing is one for mark in marks)], left, 404.0)
    return _picture(scatter.title, 414.0, parts)


def front_of(scatter: Scatter) -> tuple[Mark, ...]:
    """Marks that no other one beats in cost and metric at once, the cheapest first."""
    sign = 1 if scatter.better is Better.HIGHER else -1
    found: list[Mark] = []
    for one in sorted(scatter.marks, key=lambda mark: (mark.cost, -sign * mark.metric)):
        if not found or sign * one.metric > sign * found[-1].metric:
            found.append(one)
    return tuple(found)


def draw_bars(title: str, value_title: str, bars: Sequence[Bar], unit: Unit = Unit.NONE) -> Markup:
    """Draw a bar for each layer, from zero, in the order given; at most ROWS_MAX, the others are counted."""
    shown = bars[:ROWS_MAX]
    left, top = _label_room([one.label for one in shown]), 10.0
    room, below = (
        max((width_px(_said(one), FONT_PX) for one in shown if (one.value < 0) is negative), default=0.0) + 10
        for negative in (False, True)
    )
    bottom = top + 20 * len(shown)
    values = [0.0, *(one.value for one in shown)]
    low, high = min(values), max(values)
    across = Axis(low, high if high > low else low + 1, left + (below if low < 0 else 0), WIDTH - room - 8)
    ticks, name = labels(across, unit)
    zero = across.place(0.0)
    parts = [
        element("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom)
        for x in (across.place(one.value) for one in ticks)
    ]
    for row, one in enumerate(shown):
        y, end = top + 20 * row, across.place(one.value)
        anchor, at = ("start", end + 5) if one.value >= 0 else ("end", end - 5)
        parts += [
            _row_label(one.label, left, y + 14),
            element(
                "rect",
                class_="bar" if one.value >= 0 else "under",
                x=min(zero, end),
                y=y + 4,
                width=max(abs(end - zero), 0.75),
                height=12,
            ),
            element("text", text(_said(one)), x=at, y=y + 14, text_anchor=anchor),
        ]
    parts.append(element("line", class_="base", x1=zero, x2=zero, y1=top, y2=bottom))
    return _rows_picture(
        title, (across, _titled(value_title, name), unit), bottom, parts, len(bars) - len(shown)
    )


def draw_ranges(title: str, ranges: Sequence[Range]) -> Markup:
    """Draw the range of each tensor on one axis, and after how many samples it had settled."""
    shown = ranges[:ROWS_MAX]
    left, top, room = _label_room([one.label for one in shown]), 10.0, 160.0
    bottom = top + 20 * len(shown)
    across = _common_axis(shown, left, WIDTH - room - 12)
    ticks, _ = labels(across, Unit.NONE)
    parts = [
        element("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom)
        for x in (across.place(one.value) for one in ticks)
    ]
    for row, one in enumerate(shown):
        y = top + 20 * row + 10
        begin, end = across.place(one.low), across.place(one.high)
        said = (
            f"not settled in {one.samples}"
            if one.needed is None
            else f"settled after {one.needed} of {one.samples}"
        )
        parts += [
            _row_label(one.label, left, y + 4),
            element(
                "line", element("title", text(f"{one.label}: {figure(one.low)} to {figure(one.high)}, {said}")),
                class_="unsettled" if one.needed is None else "range", x1=begin, x2=max(end, begin + 2), y1=y, y2=y,
            ),
            element("text", text(said), x=WIDTH - room, y=y + 4, class_="strong" if one.needed is None else "soft"),
        ]  # fmt: skip
    if across.low <= 0 <= across.high:
        parts.append(
            element("line", class_="base", x1=across.place(0.0), x2=across.place(0.0), y1=top, y2=bottom)
        )
    stretched = " (stretched: distances shrink away from zero)" if across.form is Form.STRETCHED else ""
    return _rows_picture(
        title, (across, f"value{stretched}", Unit.NONE), bottom, parts, len(ranges) - len(shown)
    )


def standalone(picture: Markup) -> str:
    """Give a picture its style, so that it can be a file of its own."""
    head, _, rest = picture.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{rest}'


def _metric_axis(scatter: Scatter, bottom: float, top: float) -> Axis:
    """Make the axis of the metric, better above. What is far beyond the floor (an answer by chance) lies on its end.

    Otherwise one such candidate would press all that are worth choosing from into a line.
    """
    sign = 1 if scatter.better is Better.HIGHER else -1
    values = [sign * one.metric for one in scatter.marks] or [0.0]
    if scatter.floor is not None:
        values.append(sign * scatter.floor)
    best, worst = max(values), min(values)
    if scatter.floor is not None and best > sign * scatter.floor:
        limit = best - BEYOND * (best - sign * scatter.floor)
        worst = min(value for value in values if value >= limit)
    if sign > 0:
        return linear_axis(worst, best, bottom, top)
    return linear_axis(-best, -worst, top, bottom)


def _named(one: Mark, up: Axis) -> str:
    """Name a mark; one that lies beyond the picture with its metric."""
    label = shortened(one.label, 34)
    return label if up.low <= one.metric <= up.high else f"{label} ({one.metric:.3g}, not to scale)"


def _common_axis(ranges: Sequence[Range], start_px: float, end_px: float) -> Axis:
    ends = [end for one in ranges for end in (one.low, one.high)] or [0.0, 1.0]
    sizes = [max(abs(one.low), abs(one.high)) for one in ranges if one.low or one.high] or [1.0]
    if max(sizes) > 20 * min(sizes):
        return Axis(
            min(0.0, *ends) * 1.1, max(0.0, *ends) * 1.1, start_px, end_px, Form.STRETCHED, min(sizes)
        )
    return axis_of(ends, start_px, end_px)


def _grid(across: Axis, up: Axis, scatter: Scatter) -> list[Markup]:
    left, right = across.start_px, across.end_px
    top, bottom = sorted((up.start_px, up.end_px))
    parts = []
    ticks, _ = labels(up, Unit.NONE)
    for tick in ticks:
        y = up.place(tick.value)
        parts += [
            element("line", class_="grid", x1=left, x2=right, y1=y, y2=y),
            element("text", text(tick.label), x=left - 6, y=y + 4, text_anchor="end", class_="soft"),
        ]
    ticks, name = labels(across, scatter.cost_unit)
    for tick in ticks:
        x = across.place(tick.value)
        parts += [
            element("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom),
            element("text", text(tick.label), x=x, y=bottom + 15, text_anchor="middle", class_="soft"),
        ]
    worse = " (lower is better)" if scatter.better is Better.LOWER else ""
    cost = _titled(scatter.cost_title, name) + (", logarithmic" if across.form is Form.LOGARITHMIC else "")
    return [
        *parts,
        element("line", class_="base", x1=left, x2=right, y1=bottom, y2=bottom),
        element("text", text(scatter.metric_title + worse), x=left - 52, y=top - 18, class_="strong"),
        element("text", text(cost), x=right, y=bottom + 30, text_anchor="end", class_="strong"),
    ]


def _front(scatter: Scatter, across: Axis, up: Axis) -> Markup:
    points: list[str] = []
    for one in front_of(scatter):
        x, y = number(across.place(one.cost)), number(up.place(one.metric))
        points += [f"{x},{points[-1].partition(',')[2]}", f"{x},{y}"] if points else [f"{x},{y}"]
    return element("polyline", class_="front", points=" ".join(points))


def _mark(one: Mark, x: float, y: float, scatter: Scatter) -> Markup:
    said = f"{one.label}: {figure(one.cost)} {scatter.cost_unit.value}, {scatter.metric_title} {one.metric:.4g}, {one.standing.value}"
    return _shape(one.standing, x, y, element("title", text(said)))


def _shape(standing: Standing, x: float, y: float, *content: Markup) -> Markup:
    """A filled diamond, a ring, a cross or a square: to be told apart without colour."""
    match standing:
        case Standing.CHOSEN:
            return element(
                "path", *content, class_="chosen", d=f"M{number(x)},{number(y - 8)}l8,8l-8,8l-8,-8z"
            )
        case Standing.FITS:
            return element("circle", *content, class_="fits", cx=x, cy=y, r=5.0)
        case Standing.REFUSED:
            return element(
                "path", *content, class_="refused", d=f"M{number(x - 5)},{number(y - 5)}l10,10m0,-10l-10,10"
            )
        case Standing.SOURCE:
            return element("rect", *content, class_="source", x=x - 5, y=y - 5, width=10.0, height=10.0)


def _legend(standings: Sequence[Standing], left: float, y: float) -> list[Markup]:
    parts, x = [], left
    for one in standings:
        parts += [_shape(one, x, y - 4), element("text", text(one.value), x=x + 13, y=y, class_="soft")]
        x += 34 + width_px(one.value, FONT_PX)
    return parts


def _rows_picture(
    title: str, axis: tuple[Axis, str, Unit], bottom: float, parts: list[Markup], left_out: int
) -> Markup:
    """Put an axis below rows."""
    across, name, unit = axis
    for tick in labels(across, unit)[0]:
        x = across.place(tick.value)
        parts.append(
            element("text", text(tick.label), x=x, y=bottom + 15, text_anchor="middle", class_="soft")
        )
    parts.append(
        element("text", text(name), x=across.end_px, y=bottom + 30, text_anchor="end", class_="strong")
    )
    if left_out:
        parts.append(element("text", text(f"and {left_out} more"), x=8, y=bottom + 15, class_="soft"))
    return _picture(title, bottom + 40, parts)


def _row_label(label: str, left: float, y: float) -> Markup:
    return element(
        "text", element("title", text(label)), text(shortened(label, 36)), x=left - 8, y=y, text_anchor="end"
    )


def _label_room(names: Sequence[str]) -> float:
    return max((width_px(shortened(name, 36), FONT_PX) for name in names), default=0.0) + 18


def _room(x: float, y: float) -> Box:
    return Box(x - 7, y - 7, x + 7, y + 7)


def _said(one: Bar) -> str:
    return f"{figure(one.value)} {one.note}".strip()


def _titled(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _picture(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    return element(
        "svg", element("title", text(title)), *parts, class_="pic", viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        width=WIDTH, height=height, role="img",
    )  # fmt: skip
