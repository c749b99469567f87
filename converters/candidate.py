"""A candidate: one recipe's result and what was found out about it.

Decides the figures that selection looks at, and how a figure says where it comes from. What recipes there are is
`recipe.py`'s business, whether figures are good enough `select.py`'s.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from edgeml.ids import Digest
from edgeml.profile import DeviceRuntime

from .recipe import Recipe


class Basis(enum.Enum):
    """Where a figure comes from. One machine's measurement is never shown as another's."""

    HOST = "measured on this host"
    TURNS = "measured on this host, in turns"
    """Beside the others that are compared, so that a machine whose speed changes changes it for all."""
    DEVICE = "measured on the device"
    ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that says where it comes from. The unit is in the name of the field that holds it."""

    value: float
    basis: Basis


@dataclass(frozen=True, slots=True)
class Measured:
    """What a candidate scored and cost on a runtime, on this host.

    `value` is the metric on the evaluation samples, `agreement` the fraction of them on which the candidate and the
    model it came from gave the same answer. Latency is of one request with one sample; peak memory is the process'
    (interpreter, numpy, runtime, model).
    """

    value: float
    agreement: float
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a candidate could not be made, or did not run on its runtime."""

    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """What happened on one runtime. `version` is the library's name and version as it said them, or empty."""

    runtime: DeviceRuntime
    version: str
    outcome: Measured | Failed


@dataclass(frozen=True, slots=True)
class Candidate:
    """One recipe's result. `length_bytes` is the model file's; `sha256` is None and `failure` is said if there is no file."""

    recipe: Recipe
    length_bytes: int
    sha256: Digest | None
    runs: tuple[Run, ...]
    failure: str = ""

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.recipe.name

    def measured(self) -> Measured | None:
        """What the first runtime measured, for tables that have one line a candidate; None if none did."""
        return next((run.outcome for run in self.runs if isinstance(run.outcome, Measured)), None)


@dataclass(frozen=True, slots=True)
class Placement:
    """A candidate as one profile sees it.

    `runs` are those of the runtimes that the profile has. `latency_ms` and `memory_bytes` are None where nobody can say.
    `known_wrong` says why the pair of recipe and runtime is refused whatever was measured, or is empty. `beside_bytes` is
    what the device would store beside the model, of its bundle; 0 while no bundle was seen to be too large.
    """

    candidate: Candidate
    runs: tuple[Run, ...]
    latency_ms: Figure | None
    memory_bytes: Figure | None
    known_wrong: str = ""
    beside_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        """What the device would store."""
        return self.candidate.length_bytes + self.beside_bytes
