"""The report of a conversion as one HTML page that stands alone.

Decides the looks, and that the page asks nobody for anything: no script, no font, no picture from elsewhere, and a policy in
it that forbids them to whoever opens it. Everything that is written is escaped, for names come from model files. What stands
in a report is decided by who makes the `Page`. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .pictures import STYLE as PICTURE_STYLE
from .pictures import Standing
from .svg import Markup, element, text

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--line:#d5dae0;--paper:#fff;--tint:#eaf3fa;--accent:#0072b2}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#a3adb7;--line:#343b43;--paper:#15181c;--tint:#16303f;--accent:#56b4e9}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:62rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;margin:0 0 1rem}h2{font-size:1.15rem;margin:2.5rem 0 .5rem}h3{font-size:1rem;margin:1.5rem 0 .25rem}
p{margin:.25rem 0 .75rem;max-width:46rem}.soft,caption,figcaption{color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.25rem;margin:0}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:.4rem .75rem .4rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}td.number{font-variant-numeric:tabular-nums;white-space:nowrap}
tr.chosen td{background:var(--tint);font-weight:600}tr.chosen td:first-child{box-shadow:inset 3px 0 var(--accent);padding-left:.6rem}
figure{margin:.5rem 0}@media print{body{max-width:none;padding:0}h2,h3{break-after:avoid}figure,tr{break-inside:avoid}}
"""


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of what is known."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table, a cell for each heading."""

    cells: tuple[str, ...]
    standing: Standing | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table. `note` stands below it: where figures were measured, what is estimated."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of `pictures`, and what it shows in words, also for those who do not see it."""

    title: str
    drawing: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A question that users ask, and its answer in paragraphs."""

    question: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """All of a report, shown in this order: facts, tables, answers, pictures."""

    title: str
    facts: tuple[Fact, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    answers: tuple[Answer, ...]


def render(page: Page) -> bytes:
    """Write the page as HTML, UTF-8; the same page gives the same bytes.

    Raises:
        ValueError: A row has another number of cells than its table has headings.
    """
    head = element(
        "head",
        Markup('<meta charset="utf-8"/>'),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", text(page.title)),
        Markup(f"<style>{STYLE}{PICTURE_STYLE}</style>"),
    )
    body = element(
        "body",
        element("h1", text(page.title)),
        _facts(page.facts),
        *(_table(one) for one in page.tables),
        *(_answer(one) for one in page.answers),
        *(_picture(one) for one in page.pictures),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n".encode()


def _facts(facts: Sequence[Fact]) -> Markup:
    pairs = [
        part for one in facts for part in (element("dt", text(one.name)), element("dd", text(one.value)))
    ]
    return element("dl", *pairs) if pairs else Markup("")


def _answer(one: Answer) -> Markup:
    return element(
        "section",
        element("h2", text(one.question)),
        *(element("p", text(paragraph)) for paragraph in one.paragraphs),
    )


def _table(one: Table) -> Markup:
    if any(len(row.cells) != len(one.headings) for row in one.rows):
        raise ValueError(f"table {one.title!r} has rows of another length than its headings")
    head = element("tr", *(element("th", text(heading), scope="col") for heading in one.headings))
    parts = [
        element("h2", text(one.title)),
        element(
            "div",
            element("table", element("thead", head), element("tbody", *map(_row, one.rows))),
            class_="wide",
        ),
    ]
    if one.note:
        parts.append(element("p", text(one.note), class_="soft"))
    return element("section", *parts)


def _row(row: Row) -> Markup:
    cells = [
        element("td", text(cell), class_="number") if _is_figure(cell) else element("td", text(cell))
        for cell in row.cells
    ]
    if row.standing is None:
        return element("tr", *cells)
    return element("tr", *cells, class_=row.standing.name.lower())


def _picture(one: Picture) -> Markup:
    return element(
        "section",
        element("h2", text(one.title)),
        element("figure", one.drawing, element("figcaption", text(one.caption))),
    )


def _is_figure(cell: str) -> bool:
    """Whether a cell begins with a number: its digits are set below each other.

    >>> _is_figure("0.9624"), _is_figure("-3 points"), _is_figure("int8")
    (True, True, False)
    """
    return bool(cell) and (cell[0].isdecimal() or (cell[0] in "-+~" and cell[1:2].isdecimal()))
