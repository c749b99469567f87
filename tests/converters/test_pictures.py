"""Pictures and the page of a report: well-formed, escaped, asking nobody for anything, and readable."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from converters.explain.axis import Axis, Form, Unit, axis_of, labels, linear_axis
from converters.explain.label_places import MARK_PX, Box, Spot, place_labels
from converters.explain.pictures import (
    ROWS_MAX,
    STYLE,
    Bar,
    Better,
    Mark,
    Range,
    Scatter,
    Standing,
    draw_bars,
    draw_ranges,
    draw_scatter,
    front_of,
    standalone,
)
from converters.explain.report_page import Answer, Fact, Page, Picture, Row, Table, render
from converters.explain.svg import shortened

HOSTILE = '"><script>alert(1)</script><img src=http://x/ onerror=y>&\x00\x1b'
FINITE = st.floats(-1e9, 1e9, allow_nan=False)
POSITIVE = st.floats(1e-6, 1e9)
MARKS = st.lists(
    st.builds(Mark, st.text(max_size=40), POSITIVE, st.floats(-1, 1), st.sampled_from(Standing)),
    min_size=1,
    max_size=20,
)


def scatter(marks, **more):
    return Scatter("Candidates", "latency", Unit.MILLISECONDS, "accuracy", tuple(marks), **more)


def texts(picture):
    root = ET.fromstring(standalone(picture))
    return ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]


REAL = (
    Mark("fp32", 0.225, 0.9624, Standing.SOURCE),
    Mark("dynamic int8", 1.341, 0.9624, Standing.REFUSED),
    Mark("s8s8", 0.283, 0.9638, Standing.FITS),
    Mark("u8s8", 0.130, 0.9638, Standing.CHOSEN),
    Mark("pruned", 0.098, 0.951, Standing.REFUSED),
    Mark("wrong here", 0.2, 0.1001, Standing.REFUSED),
)


class TestScatter:
    def test_names_every_candidate_the_floor_and_the_units(self):
        said = texts(draw_scatter(scatter(REAL, floor=0.9574)))
        for expected in ("fp32", "u8s8", "pruned", "floor 0.9574", "accuracy", "chosen", "refused"):
            assert expected in said
        assert "latency (ms), logarithmic" in said

    def test_a_candidate_far_below_the_floor_is_said_to_be_out_of_scale_and_does_not_press_the_others(self):
        picture = draw_scatter(scatter(REAL, floor=0.9574))
        assert "wrong here (0.1, not to scale)" in texts(picture)
        heights = [float(y) for y in re.findall(r'class="fits" cx="[\d.]+" cy="([\d.]+)"', picture)]
        assert heights[0] < 100

    def test_an_error_is_better_when_lower_and_stays_above(self):
        marks = [Mark("good", 1.0, 0.1, Standing.CHOSEN), Mark("bad", 1.0, 0.5, Standing.REFUSED)]
        picture = draw_scatter(scatter(marks, better=Better.LOWER, floor=0.3))
        good = float(re.search(r'class="chosen" d="M[\d.]+,([\d.]+)', picture).group(1))
        bad = float(re.search(r'class="refused" d="M[\d.]+,([\d.]+)', picture).group(1))
        assert good < bad
        assert "ceiling 0.3" in texts(picture)

    @given(MARKS, st.sampled_from(Better))
    def test_the_front_is_what_none_beats_in_both(self, marks, better):
        drawn = scatter(marks, better=better)
        sign = 1 if better is Better.HIGHER else -1
        front = front_of(drawn)
        for one in front:
            assert not any(
                other.cost <= one.cost and sign * other.metric > sign * one.metric for other in marks
            )
        for one in marks:
            assert any(two.cost <= one.cost and sign * two.metric >= sign * one.metric for two in front)

    @given(MARKS, st.one_of(st.none(), st.floats(-1, 1)), st.sampled_from(Better))
    def test_any_candidates_make_a_well_formed_picture_inside_its_frame(self, marks, floor, better):
        picture = draw_scatter(scatter(marks, floor=floor, better=better))
        root = ET.fromstring(standalone(picture))
        wide, high = (float(one) for one in root.attrib["viewBox"].split()[2:])
        for one in root.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert 0 <= float(one.attrib.get(name, 0)) <= wide
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(one.attrib.get(name, 0)) <= high
        assert draw_scatter(scatter(marks, floor=floor, better=better)) == picture


@given(
    st.lists(
        st.builds(Spot, st.floats(70, 740), st.floats(40, 350), st.text("abcdef ", min_size=1, max_size=30)),
        max_size=30,
    )
)
def test_labels_cover_neither_each_other_nor_a_mark(spots):
    placed = place_labels(spots, Box(64, 20, 760, 352))
    for one, other in itertools.combinations(placed, 2):
        assert not one.box.meets(other.box)
    for one, spot in itertools.product(placed, spots):
        assert not one.box.meets(Box(spot.x - MARK_PX, spot.y - MARK_PX, spot.x + MARK_PX, spot.y + MARK_PX))


def test_a_lone_label_stands_beside_its_mark():
    [placed] = place_labels([Spot(100, 100, "one")], Box(0, 0, 300, 200))
    assert not placed.leads
    assert 100 < placed.box.left < 110


class TestAxis:
    @given(st.lists(FINITE, min_size=1, max_size=10), st.sampled_from(Unit))
    def test_values_lie_in_order_and_inside(self, values, unit):
        axis = axis_of(values, 10.0, 500.0)
        places = [axis.place(value) for value in sorted(values)]
        assert places == sorted(places)
        assert all(10 - 1e-6 <= place <= 500 + 1e-6 for place in places)
        ticks, _ = labels(axis, unit)
        assert len({one.label for one in ticks}) == len(ticks)
        assert len(ticks) <= 20

    @given(*[st.floats(allow_nan=False, allow_infinity=False)] * 2, st.sampled_from(Unit))
    @example(0.9550222222222222, 0.9550222222222223, Unit.NONE)
    @example(1e9, math.nextafter(1e9, 2e9), Unit.BYTES)
    @example(-1.7e308, 1.7e308, Unit.NONE)
    @example(0.0, 5e-324, Unit.NONE)
    def test_any_two_numbers_are_written_apart_however_near_they_are(self, one, other, unit):
        for axis in (axis_of([one, other], 10.0, 500.0), linear_axis(*sorted([one, other]), 10.0, 500.0)):
            ticks, _ = labels(axis, unit)
            assert ticks
            assert all(math.isfinite(float(tick.label)) for tick in ticks)
            assert len({float(tick.label) for tick in ticks}) == len(ticks)
            assert 10 - 1e-6 <= axis.place(one) <= 500 + 1e-6

    def test_scores_a_rounding_apart_make_a_picture(self):
        marks = [
            Mark("fp32", 1.0, 0.9550222222222222, Standing.SOURCE),
            Mark("fp16", 0.5, 0.9550222222222223, Standing.CHOSEN),
        ]
        assert "fp16" in texts(draw_scatter(scatter(marks)))

    def test_numbers_too_near_for_round_ones_between_them_are_not_written_twice(self):
        ticks, _ = labels(Axis(1.0, math.nextafter(1.0, 2.0), 0.0, 1.0), Unit.NONE)
        assert len({tick.value for tick in ticks}) == len(ticks)

    def test_sizes_of_very_different_models_are_logarithmic(self):
        assert axis_of([1e4, 1e6], 0, 1).form is Form.LOGARITHMIC
        assert axis_of([1e4, 2e4], 0, 1).form is Form.LINEAR
        assert axis_of([-1, 1e6], 0, 1).form is Form.LINEAR

    def test_a_stretched_axis_is_even_around_zero(self):
        axis = Axis(-100, 100, 0.0, 200.0, Form.STRETCHED, 1.0)
        assert axis.place(0) == 100
        assert axis.place(-5) + axis.place(5) == pytest.approx(200)
        assert axis.ticks() == (-100, -10, -1, 0, 1, 10, 100)


class TestRows:
    def test_bars_say_their_values_and_what_was_left_out(self):
        bars = [Bar(f"layer{i}", 1.0 - i / 10, "points") for i in range(ROWS_MAX + 3)]
        said = texts(draw_bars("Sensitivity", "lost", bars, Unit.POINTS))
        assert any(one.endswith("layer0") for one in said)
        assert "1 points" in said
        assert "and 3 more" in said
        assert "lost (points)" in said

    def test_ranges_say_which_have_not_settled(self):
        picture = draw_ranges(
            "Ranges", [Range("a", 0, 1, 8, 100), Range("b", -50, 80, None, 100), Range("c", 0, 0, 1, 100)]
        )
        said = texts(picture)
        assert "settled after 8 of 100" in said
        assert "not settled in 100" in said
        assert picture.count('class="unsettled"') == 1

    @given(st.lists(st.tuples(st.text(max_size=60), FINITE, FINITE), max_size=12))
    def test_any_rows_make_well_formed_pictures(self, rows):
        ET.fromstring(standalone(draw_bars("b", "v", [Bar(name, value) for name, value, _ in rows])))
        ranges = [Range(name, min(a, b), max(a, b), 1, 2) for name, a, b in rows]
        ET.fromstring(standalone(draw_ranges("r", ranges)))


@pytest.mark.parametrize(("said", "room"), [("conv", 10), ("a" * 80, 36), ("", 3)])
def test_a_shortened_name_keeps_both_ends(said, room):
    short = shortened(said, room)
    assert len(short) <= max(room, 0)
    assert said.startswith(short.partition("…")[0])
    assert said.endswith(short.rpartition("…")[2])


def contrast(one, other):
    """Contrast of two colours by WCAG 2.1."""

    def luminance(colour):
        colour = colour.lstrip("#")
        colour = "".join(2 * part for part in colour) if len(colour) == 3 else colour
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_seen_in_light_and_in_dark():
    for theme in STYLE.split("@media"):
        colours = dict(re.findall(r"--(\w+):(#\w+)", theme))
        for name in ("ink", "soft"):
            assert contrast(colours[name], colours["paper"]) >= 4.5
        for name in ("blue", "orange", "grey"):
            assert contrast(colours[name], colours["paper"]) >= 3


def page(said=HOSTILE):
    drawing = draw_scatter(scatter([Mark(said, 1.0, 0.9, Standing.CHOSEN)], floor=0.8))
    return Page(
        said,
        (Fact(said, said),),
        (Table(said, (said, "n"), (Row((said, "0.5"), Standing.CHOSEN), Row((said, "-1"))), said),),
        (Picture(said, drawing, said), Picture("b", draw_bars(said, said, [Bar(said, 1.0, said)]), said)),
        (Answer(said, (said,)),),
    )


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


class TestPage:
    def test_hostile_names_stay_text(self):
        text = render(page()).decode()
        seen = Tags(text)
        assert {"script", "img", "link", "iframe", "object"} & set(seen.tags) == set()
        assert not any(name.startswith("on") for name, _ in seen.attributes)
        assert "alert(1)" in text
        assert "\x1b" not in text
        assert "\x00" not in text

    def test_nobody_is_asked_for_anything(self):
        text = render(page("plain")).decode()
        seen = Tags(text)
        assert {"src", "href", "xlink:href", "srcset", "action"} & {
            name for name, _ in seen.attributes
        } == set()
        assert not re.search(r"url\(|@import|https?:", text)
        assert "default-src &#x27;none&#x27;" in text

    def test_shows_everything_once_in_order(self):
        text = render(
            Page(
                "title",
                (Fact("source", "net.py"),),
                (Table("Candidates", ("name",), (Row(("u8s8",), Standing.CHOSEN),), "measured on HOST"),),
                (),
                (Answer("Why?", ("Because.",)),),
            )
        ).decode()
        order = [
            "<h1>title",
            "net.py",
            "Candidates",
            '<tr class="chosen"',
            "u8s8",
            "measured on HOST",
            "Why?",
            "Because.",
        ]
        places = [text.index(one) for one in order]
        assert places == sorted(places)

    def test_is_well_formed_and_the_same_each_time(self):
        made = render(page())
        assert made == render(page())
        ET.fromstring(made.decode().removeprefix("<!DOCTYPE html>\n"))

    def test_a_row_of_another_length_is_a_mistake(self):
        with pytest.raises(ValueError, match="another length"):
            render(Page("t", (), (Table("x", ("a", "b"), (Row(("1",)),)),), (), ()))


def test_no_picture_holds_a_number_that_is_none():
    picture = draw_scatter(scatter([Mark("one", 1.0, 0.5, Standing.CHOSEN)]))
    assert not re.search(r"nan|inf", picture)
    assert math.isfinite(float(re.search(r'viewBox="0 0 (\d+)', picture).group(1)))
