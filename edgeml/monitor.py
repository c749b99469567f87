"""The monitor: which columns of a model's inputs and outputs are counted, and in which bins.

Decides the specification that travels in the bundle (`monitor.json`) and its meaning. It is data: pulling the columns
out of arrays is `edgeml.columns`' business, counting `edgeml.observer`'s, building it from reference data
`edgeml.reference`'s. Counts of two devices may be added only if their monitors have the same digest.
"""

from __future__ import annotations

import enum
import itertools
import math
from typing import Final

import msgspec

from .errors import IncompatibleError, ManifestError
from .ids import Digest, digest_of

FORMAT_VERSION: Final = 1
MONITOR_BYTES_MAX: Final = 4 << 20
COLUMNS_MAX: Final = 512
BINS_MAX: Final = 512


class Statistic(enum.Enum):
    """How a column's value comes from one sample."""

    ELEMENT = "element"
    """Element `index` of the flattened tensor."""
    MEAN = "mean"
    STD = "std"
    PROJECTION = "projection"
    """Dot product with the `index`-th fixed vector of +1 and -1, divided by the root of its length."""
    SCORE = "score"
    """Probability of class `index`."""
    CONFIDENCE = "confidence"
    """Highest probability."""
    CLASS = "class"
    """Index of the highest score; categorical."""


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One counted quantity.

    Numeric: bin 0 is below `edges[0]`, bin i holds [edges[i-1], edges[i]), the last bin is at or above the last edge.
    Categorical (no edges): one bin per code and one for any other code.
    `spacings` has one number per bin: how much reference mass the bin holds, in samples. It is the parameter of the
    Dirichlet law of the bins' true masses (uniform spacings between order statistics).
    `centre` and `spread` standardise a value: z = (value - centre) / spread.
    """

    tensor: str
    statistic: Statistic
    index: int
    spacings: tuple[float, ...]
    edges: tuple[float, ...] = ()
    centre: float = 0.0
    spread: float = 1.0
    design_effect: float = 1.0
    """By how much autocorrelation inflates the variance of counts; counts are divided by it before they are evidence."""

    @property
    def name(self) -> str:
        """Readable name, for example `image.mean` or `scores.score[3]`."""
        indexed = self.statistic in {Statistic.ELEMENT, Statistic.PROJECTION, Statistic.SCORE}
        return f"{self.tensor}.{self.statistic.value}" + (f"[{self.index}]" if indexed else "")

    @property
    def is_categorical(self) -> bool:
        """Whether values are codes."""
        return not self.edges


class Monitor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a device counts for one variant.

    `confidence_low` marks an inference as of low confidence; `latency_slow_ms` as slow.
    """

    columns: tuple[Column, ...]
    reference_rows: int
    confidence_low: float | None = None
    latency_slow_ms: float | None = None
    format_version: int = FORMAT_VERSION


def encode(monitor: Monitor) -> bytes:
    """Canonical bytes; `decode(encode(m)) == m`."""
    return msgspec.json.encode(monitor, order="sorted")


def digest(monitor: Monitor) -> Digest:
    """What sketches of this monitor are keyed by."""
    return digest_of(encode(monitor))


def decode(data: bytes) -> Monitor:
    """Read a monitor.

    Raises:
        ManifestError: Too long, not JSON, not of this form, or edges and spacings do not fit.
        IncompatibleError: Of a newer format.
    """
    if len(data) > MONITOR_BYTES_MAX:
        raise ManifestError(f"the monitor has {len(data)} bytes, more than {MONITOR_BYTES_MAX}")
    try:
        version = msgspec.json.decode(data, type=_Versioned).format_version
        if version != FORMAT_VERSION:
            raise IncompatibleError(
                f"the monitor has format {version}; this edgeml reads format {FORMAT_VERSION}",
                hint="update edgeml, or build the bundle with an older one",
            )
        monitor = msgspec.json.decode(data, type=Monitor)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"the monitor is not valid: {error}") from error
    if len(monitor.columns) > COLUMNS_MAX:
        raise ManifestError(f"the monitor has {len(monitor.columns)} columns, more than {COLUMNS_MAX}")
    for column in monitor.columns:
        _check(column)
    return monitor


class _Versioned(msgspec.Struct):
    format_version: int = FORMAT_VERSION


def _check(column: Column) -> None:
    finite = all(
        math.isfinite(value) for value in (*column.edges, *column.spacings, column.centre, column.spread)
    )
    bins_fit = 2 <= len(column.spacings) <= BINS_MAX and (
        column.is_categorical or len(column.spacings) == len(column.edges) + 1
    )
    ascending = all(low < high for low, high in itertools.pairwise(column.edges))
    positive = all(value > 0 for value in column.spacings) and column.spread > 0 and column.design_effect >= 1
    if not (finite and bins_fit and ascending and positive and column.index >= 0):
        raise ManifestError(f"the monitor's column {column.name} is not valid")
