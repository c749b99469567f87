"""`edgeml diff`: what changed between two bundles.

Decides how bundles are opened and what is printed. What counts as a difference is decided in `diff`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeml.ids import is_digest

if TYPE_CHECKING:
    from .diff import BundleDiff, LayerChange, Side
    from .weights import Naming

LAYERS_SHOWN = 8


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Say what changed from bundle BEFORE to bundle AFTER: interface, quality, answers, weights, provenance, size.

    Also how many bytes a device that has BEFORE would download to get AFTER. Weights are told by layer: by their names
    or, where those of a file say nothing, by the operator that reads them ("Conv 3" is the third convolution).

    \b
    Example:
        edgeml diff digits-1.0.0-onnx-int8-s8s8.edgeml digits-1.1.0-onnx-int8-s8s8.edgeml
    \f

    Raises:
        ArtifactError: A file is no bundle, or its content is not what its manifest states.
        ConfigError: A file cannot be read.
    """
    from edgeml import delta

    from .diff import compare
    from .show import print_json

    naming = _naming((before, after))
    sides = _read(before, naming), _read(after, naming)
    result = compare(*sides, delta_bytes=sum(map(len, delta.pieces(before, after))))
    if as_json:
        print_json(result)
    else:
        tell(result)


def tell(result: BundleDiff) -> None:
    """Print the differences, the most important first."""
    from rich import box
    from rich.table import Table

    from .show import console_for_tables
    from .units import size

    console = console_for_tables()
    console.print(f"{_plain(result.before)} -> {_plain(result.after)}", soft_wrap=True)
    if result.is_identical:
        console.print("the same bytes")
        return
    if result.changes:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        table.add_column("what", no_wrap=True)
        table.add_column("before", overflow="fold")
        table.add_column("after", overflow="fold")
        for one in result.changes:
            table.add_row(_plain(one.field), _shown(one.before), _shown(one.after))
        console.print(table)
    console.print(_answers(result), soft_wrap=True)
    console.print(f"weights: {_weights(result)}", soft_wrap=True)
    for layer in result.layers[:LAYERS_SHOWN]:
        console.print(f"  {layer_text(layer)}", soft_wrap=True)
    if len(result.layers) > LAYERS_SHOWN:
        console.print(f"  ... {len(result.layers) - LAYERS_SHOWN} more layers; --json has all")
    (old, new), (old_bundle, new_bundle) = result.model_bytes, result.bundle_bytes
    console.print(f"model {size(old)} -> {size(new)}, bundle {size(old_bundle)} -> {size(new_bundle)}")
    share = result.delta_bytes / new_bundle
    console.print(
        f"a device that has the first downloads {size(result.delta_bytes)} ({share:.0%} of the bundle)"
    )


def layer_text(one: LayerChange) -> str:
    """Write how one layer changed; by how much, only where something was compared."""
    counts = {
        "changed": one.changed,
        "added": one.added,
        "removed": one.removed,
        "of another shape": one.reshaped,
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    text = f"{_plain(one.layer)[:80]}: {said} of {one.tensors}"
    if one.relative is None or one.largest is None:
        return text
    return f"{text}; by {one.relative:.2%}, at most {one.largest:.3g}"


def _weights(result: BundleDiff) -> str:
    if not result.tensors:
        return "none that can be compared"
    return f"{result.tensors_changed} of {result.tensors} tensors changed"


def _answers(result: BundleDiff) -> str:
    if result.answers is None:
        return "recorded answers: no samples in common, or other outputs"
    one = result.answers
    return (
        f"recorded answers on {one.samples} common samples: agreement {one.agreement:.3f}, "
        f"largest difference {one.difference_fraction:.2%} of the range"
    )


def _shown(text: str) -> str:
    """Write a value of a manifest; of a digest, its beginning."""
    return f"{text[:12]}..." if is_digest(text) else _plain(text or "-")


def _plain(text: str) -> str:
    """Make text of a bundle fit for a terminal: no control characters."""
    return "".join(char for char in text if char.isprintable())


def _naming(paths: Iterable[Path]) -> Naming:
    """By what constants are called on both sides: by their names, if those of both say anything."""
    from edgeml import bundle

    from .weights import Naming, naming_of

    for path in paths:
        with bundle.Bundle(path) as opened:
            if naming_of(opened.model(), opened.manifest.runtime) is Naming.READER:
                return Naming.READER
    return Naming.NAME


def _read(path: Path, naming: Naming) -> Side:
    from edgeml import bundle, golden, monitor
    from edgeml.ids import digest_of_file

    from .diff import Side
    from .weights import read_weights

    with bundle.Bundle(path) as opened:
        manifest = opened.manifest
        has = opened.has
        return Side(
            manifest=manifest,
            monitor=monitor.decode(opened.read(bundle.MONITOR)) if has(bundle.MONITOR) else None,
            recorded=golden.decode(opened.read(bundle.GOLDEN), manifest) if has(bundle.GOLDEN) else None,
            weights=read_weights(opened.model(), manifest.runtime, naming),
            sha256=digest_of_file(path),
            length_bytes=path.stat().st_size,
        )
