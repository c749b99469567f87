"""What a bundle expects of its inputs: derived from samples, and what a person says of it.

Decides that a file's word on an input replaces what was derived, all of it. What can be expected is `edgeml.expectation`'s
business, how a range is derived `edgeml.reference`'s. Format: docs/bundle-format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgeml.errors import ConfigError, ManifestError
from edgeml.expectation import Expected, InputExpectation, check
from edgeml.manifest import Manifest
from edgeml.reference import expectations

from .assemble import Array
from .record_file import read_record

_HINT: Final = "docs/bundle-format.md describes expectations and has an example"


def read_expected(path: Path) -> Expected:
    """Read expectations from a .json or .toml file.

    Raises:
        ConfigError: The file cannot be read, or does not say expectations.
    """
    return read_record(path, Expected, _HINT)


def expected_of(
    manifest: Manifest, samples: Sequence[Array] | None, stated: Expected | None
) -> Expected | None:
    """Join what samples [samples, ...] of each input show and what a person states; None if that is nothing.

    Raises:
        ConfigError: What is stated cannot be meant for this model.
    """
    specs = manifest.surface.inputs
    stated = stated or Expected()
    try:
        check(stated, (spec.name for spec in specs))
    except ManifestError as error:
        names = ", ".join(spec.name for spec in specs)
        raise ConfigError(error.message, hint=f"callers give {names}. {_HINT}") from error
    derived: tuple[InputExpectation, ...] = ()
    if samples is not None:
        arrays = {spec.name: array for spec, array in zip(specs, samples, strict=True)}
        derived = expectations(specs, arrays)
    mine = tuple(one for one in derived if stated.of(one.input) is None)
    joined = Expected((*mine, *stated.inputs), stated.volume)
    return None if joined == Expected() else joined
