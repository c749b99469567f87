"""Files stay small, and their names say what they are."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES_MAX = 400
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}


def files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize(
    "path",
    files("edgeml", "agent", "converters", "fleet", "tests", "benchmarks"),
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_no_file_is_longer_than_the_cap(path):
    assert len(path.read_text().splitlines()) <= LINES_MAX


@pytest.mark.parametrize(
    "path", files("edgeml", "agent", "converters", "fleet"), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_every_file_is_named_after_what_it_holds_and_says_so(path):
    assert path.stem not in FORBIDDEN
    assert path.read_text().lstrip().startswith('"""'), "a module docstring says what the file decides"
