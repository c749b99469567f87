"""The workstation's commands: convert, package, sample.

Parses, calls one function, prints. torch, onnx and rich are loaded inside the bodies.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeml.errors import EdgemlError

if TYPE_CHECKING:
    from .order import ConversionOrder, DeviceMeasurement
    from .report import Conversion

SEED_MAX = 2**32 - 1
"""What scikit-learn takes."""
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    show_default="here",
    help="Where bundles are written.",
)


@click.command()
@click.argument("model")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help=".npz with calibration_x, evaluation_x, evaluation_y; to train on: train_x, train_y.",
)
@click.option(
    "--profile", "profiles", multiple=True, required=True, help="Hardware it is for; may be repeated."
)
@click.option("--name", required=True, help="The model's name.")
@click.option("--version", required=True, help="The release's version.")
@click.option("--max-drop", default="0.5%", show_default=True, help="How much of the metric may be lost.")
@click.option("--max-latency", help="Longest time of one request on the profile, as 5ms.")
@click.option("--max-bytes", help="Largest model file, as 200KB.")
@click.option("--max-memory", help="Most memory with its runtime, as 64MB; on a microcontroller, the arena.")
@click.option(
    "--metric", default="", help="accuracy, auc, mae or file.py:function; default: by evaluation_y."
)
@click.option(
    "--target",
    type=click.Choice(["onnx", "tflite", "torchscript"]),
    help="What is made; default: ONNX where the profile runs it.",
)
@click.option(
    "--explore", is_flag=True, help="Try everything; without it the first that is good enough ends it."
)
@click.option(
    "--prefer",
    type=click.Choice(["bytes", "latency"]),
    default="bytes",
    show_default=True,
    help="What is better among those that keep to every constraint.",
)
@click.option("--student", "students", multiple=True, help="file.py:factory of a smaller network to train.")
@click.option(
    "--measured",
    multiple=True,
    help="PROFILE=FILE of `edgeml measure` on such a device: stands for an estimate. May be repeated.",
)
@click.option("--parent", default="", help="The release that this one follows, as digits@1.0.0.")
@click.option("--labels", default="", help="Names of the classes, with commas between.")
@click.option(
    "--scores",
    type=click.Choice(["logits", "probabilities"]),
    default="logits",
    show_default=True,
    help="What the scores are.",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where what was made is kept, to go on from it; default: your cache.",
)
@OUT
@JSON
def convert(model: str, *, profiles: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Shrink MODEL for its hardware, verify every candidate on its runtime, bundle the best under the constraints.

    MODEL is file.py:factory (your own code: it is run), an exported program (.pt2), .onnx or .tflite. TorchScript
    (.pt) and pickled estimators (.pkl, .joblib) are opened in a child process without network.

    \b
    Example:
        edgeml convert digits.py:model --data data.npz --profile raspberry-pi-4 --name digits --version 1.0.0
        edgeml convert digits.py:model --data data.npz --profile raspberry-pi-4 --profile stm32h7 --name digits \\
            --version 1.1.0 --max-drop 1% --max-latency 5ms --max-bytes 200KB --explore
    """
    from .service import convert as run
    from .show import print_json, searching, tell_conversion

    order = _order(model, profiles, options)
    tell = print_json if as_json else tell_conversion
    refused: list[Conversion] = []
    try:
        with searching(quiet=as_json) as on_progress:
            conversion = run(order, on_progress, refused.append)
    except EdgemlError:
        for one in refused:
            tell(one)
        raise
    tell(conversion)


def _order(model: str, profiles: tuple[str, ...], options: dict[str, Any]) -> ConversionOrder:
    from edgeml.manifest import RuntimeFamily, ScoreKind
    from edgeml.profile import load

    from .amounts import byte_count, fraction, milliseconds
    from .assemble import ReleaseName
    from .order import ConversionOrder, Limits
    from .plan import Effort
    from .select import Preference

    def given(name: str, read: Callable[[str], Any]) -> Any:
        return None if options[name] is None else read(options[name])

    return ConversionOrder(
        source=model,
        data=options["data"],
        profiles=tuple(load(profile) for profile in profiles),
        release=ReleaseName(options["name"], options["version"]),
        limits=Limits(
            max_drop=fraction(options["max_drop"]),
            max_latency_ms=given("max_latency", milliseconds),
            max_bytes=given("max_bytes", byte_count),
            max_memory_bytes=given("max_memory", byte_count),
        ),
        out=options["out"],
        labels=tuple(options["labels"].split(",")) if options["labels"] else (),
        scores=ScoreKind(options["scores"]),
        metric=options["metric"],
        target=given("target", RuntimeFamily),
        effort=Effort.EXPLORE if options["explore"] else Effort.FIRST,
        preference=Preference(options["prefer"]),
        students=options["students"],
        work=options["work"],
        parent=options["parent"],
        measurements=tuple(map(_measurement, options["measured"])),
    )


def _measurement(text: str) -> DeviceMeasurement:
    from edgeml.errors import ConfigError

    from .calibrate_command import read_record
    from .order import DeviceMeasurement

    profile, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigError(
            f"{text!r} names no measurement",
            hint="write --measured raspberry-pi-4=pi.json, with what `edgeml measure --out` wrote there",
        )
    return DeviceMeasurement(profile, read_record(Path(path)))


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--profile", "profiles", multiple=True, required=True, help="Hardware it is for; may be repeated."
)
@click.option("--name", required=True, help="The model's name.")
@click.option("--version", required=True, help="The release's version.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help=".npz with evaluation_x and, for a classifier, evaluation_y.",
)
@click.option(
    "--task",
    type=click.Choice(["classification", "other"]),
    help="What the first output means; default: from the data.",
)
@click.option("--labels", default="", help="Names of the classes, with commas between.")
@click.option(
    "--scores",
    type=click.Choice(["logits", "probabilities"]),
    default="logits",
    show_default=True,
    help="What the scores are.",
)
@click.option(
    "--processing",
    type=click.Path(path_type=Path),
    help=".json or .toml with the steps before and after the model.",
)
@click.option(
    "--expected",
    type=click.Path(path_type=Path),
    help=".json or .toml with what is expected of inputs; default: the range of the data, only counted.",
)
@OUT
@JSON
def package(
    model: Path,
    *,
    data: Path | None,
    profiles: tuple[str, ...],
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Bundle an existing MODEL (.onnx or .tflite) as it is, checked in a child process first.

    \b
    Example:
        edgeml package ad01_int8.tflite --profile raspberry-pi-4 --name toycar --version 1.0.0
    """
    from edgeml.manifest import ScoreKind, Task
    from edgeml.profile import load

    from .assemble import ReleaseName
    from .existing import PackagingOrder
    from .existing import package as run
    from .expected_file import read_expected
    from .processing_file import read_processing
    from .show import print_json, steps, tell_packaging

    order = PackagingOrder(
        model=model,
        profiles=tuple(load(profile) for profile in profiles),
        release=ReleaseName(options["name"], options["version"]),
        out=out,
        data=data,
        task=Task(options["task"]) if options["task"] else None,
        scores=ScoreKind(options["scores"]),
        labels=tuple(options["labels"].split(",")) if options["labels"] else (),
        processing=read_processing(options["processing"]) if options["processing"] else None,
        expected=read_expected(options["expected"]) if options["expected"] else None,
    )
    with steps(quiet=as_json) as on_step:
        packaging = run(order, on_step)
    if as_json:
        print_json(packaging)
    else:
        tell_packaging(packaging)


@click.group()
def sample() -> None:
    """Something to try edgeml on: models trained on the spot, on real data."""


@sample.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where models and data are written.",
)
@click.option(
    "--release",
    "releases",
    multiple=True,
    help="v1 (default), v2 (better) or v3 (good at home, bad in the field); may be repeated.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, SEED_MAX),
    default=0,
    show_default=True,
    help="Another seed gives another split and other weights.",
)
@JSON
def digits(out: Path, releases: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Train small CNNs on scikit-learn's digits: OUT/v1/digits.py, its weights and data, and OUT/field.npz.

    \b
    Example:
        edgeml sample digits --out models
        edgeml convert models/v1/digits.py:model --data models/v1/data.npz --name digits --version 1.0.0 \\
            --profile generic-x86-64
    """
    from .samples import digits as digits_sample
    from .show import print_json, training

    with training(quiet=as_json) as on_epoch:
        trained = digits_sample.write(out, digits_sample.find(releases), seed, on_epoch)
    if as_json:
        print_json(trained)
        return
    for one in trained:
        click.echo(
            f"{one.name}: accuracy {one.accuracy:.3f} on its own evaluation data, {one.field_accuracy:.3f} in the field; {one.directory}"
        )
