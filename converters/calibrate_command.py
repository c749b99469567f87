"""`edgeml calibrate`: makes the estimates of a profile fit what was measured on a board.

Decides which measurement belongs to which bundle (by the model's digest), and that only those of one thread count, for
estimates are of one. What is replaced is decided by `edgeml.calibration` and `estimate/roofline.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeml.errors import ConfigError

if TYPE_CHECKING:
    from edgeml.measurement import MeasurementRecord
    from edgeml.profile import HardwareProfile

    from .estimate.graph import Graph


@click.command()
@click.argument("profile")
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A bundle that was measured; may be repeated.",
)
@click.option("--name", required=True, help="Name of the new profile.")
def calibrate(profile: str, records: tuple[Path, ...], bundles: tuple[Path, ...], name: str) -> None:
    """Make the profile of your own board, whose latency estimates fit what was measured there. Prints TOML.

    RECORDS are what `edgeml measure BUNDLE --out FILE` wrote on the board, of the bundles that are given. The more
    bundles of different kinds, the better: all rates are corrected by one factor, and how far the measurements lie apart
    is said in the profile.

    \b
    Example:
        edgeml calibrate raspberry-pi-4 fp32.json int8.json --bundle fp32.edgeml --bundle int8.edgeml \\
            --name my-board > my-board.toml
    \f

    Raises:
        ConfigError: A measurement is of none of the bundles, or of several machines, or was slowed down.
        ArtifactError: A file is damaged.
    """
    from edgeml import profile as profiles
    from edgeml.profile_text import encode

    from .readable import read

    graphs = {_model_digest(path): read(str(path)).graph for path in bundles}
    found = [read_record(path) for path in records]
    click.echo(encode(fitted(profiles.load(profile), found, graphs, name)), nl=False)


def fitted(
    profile: HardwareProfile, records: Sequence[MeasurementRecord], graphs: dict[str, Graph], name: str
) -> HardwareProfile:
    """Replace what records tell of a machine, and correct the rates by how far estimates were off.

    Args:
        profile: where everything comes from that the records do not tell.
        records: of one kind of machine.
        graphs: what the measured models compute, by digest.
        name: of the new profile.

    Raises:
        ConfigError: A record is of no graph, or of several threads; or as `edgeml.calibration.calibrate`.
    """
    from edgeml.calibration import calibrate as replace

    from .estimate.roofline import Observation, calibrated, correction, estimate

    mine = replace(profile, records, name)
    pairs = []
    for record in records:
        if record.model_sha256 not in graphs:
            raise ConfigError(
                f"a measurement is of {record.release} {record.variant}, whose bundle is not given",
                hint="give it with --bundle",
            )
        if record.threads != 1:
            raise ConfigError(
                f"the measurement of {record.variant} is of {record.threads} threads",
                hint="measure with --threads 1: estimates are of one thread",
            )
        seen = Observation(mine.name, record.model_sha256, record.latency_p50_ms, record.host)
        pairs.append((estimate(graphs[record.model_sha256], mine), seen))
    return calibrated(mine, correction(pairs))


def _model_digest(path: Path) -> str:
    from edgeml.bundle import Bundle
    from edgeml.ids import digest_of

    with Bundle(path) as bundle:
        return digest_of(bundle.model())


def read_record(path: Path) -> MeasurementRecord:
    """Read what `edgeml measure --out` wrote.

    Raises:
        ConfigError: It cannot be read.
        ManifestError: It is no measurement.
    """
    from edgeml.measurement import RECORD_BYTES_MAX, decode

    try:
        with path.open("rb") as file:
            return decode(file.read(RECORD_BYTES_MAX + 1), path.name)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
