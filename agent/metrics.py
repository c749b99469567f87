"""The page that Prometheus reads: facts of an agent as text.

Decides names, labels, units and buckets. Pure: whoever asks gathers the facts. Counters begin with the agent's process,
those of telemetry with the device's buffer; none ever shrinks, whatever windows are closed meanwhile.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from edgeml.ids import ModelName, ReleaseId, parse_release
from edgeml.telemetry import Counters, DropReason, Loss, Stream
from edgeml.twin import DeviceState, Outcome

from .diagnosis import Cause, Level
from .governor import Kind
from .serving import Toll
from .windows import Total

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BINS_PER_OCTAVE: Final = 4
BUCKET_FIRST: Final = 4
BUCKET_LAST: Final = 19
"""Buckets end at 2^4 to 2^19 microseconds. The bins below them reach no further, except the last one, which has no end."""
_COUNTERS: Final = (
    ("inferences", "Requests that a model answered."),
    ("errors", "Requests that got no answer because the model or its worker failed."),
    ("low_confidence", "Answers of low confidence, as of the last closed window."),
    ("slow", "Answers slower than the model's monitor allows."),
    ("labelled", "Answers about which the truth was heard later."),
    ("wrong", "Answers that proved to be wrong."),
)

_VIOLATIONS: Final = (
    "schema", "dtype", "out_of_range", "missing", "non_finite", "volume_low", "volume_high",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker that serves; 0 bytes while it is dead."""

    release: ReleaseId
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """Rows of one stream of telemetry: what became of them, and how many wait."""

    stream: Stream
    loss: Loss
    held: int
    held_back: int = 0
    """Those of them that wait because of the network's budget."""


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """Where a model's update machine stands, and how its last deployment ended."""

    model: ModelName
    state: DeviceState
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class BudgetFacts:
    """What models use of the device's budget, and what was decided about them since the agent's start."""

    level: Level = Level.CALM
    decisions: Mapping[tuple[ModelName, Kind, Cause], int] = field(default_factory=dict)
    turned_away: Mapping[ModelName, int] = field(default_factory=dict)
    """Requests, to spare the device."""
    granted: Mapping[ModelName, int] = field(default_factory=dict)
    """Bytes of memory."""
    used_bytes: int = 0
    memory_bytes: int | None = None
    """The budget."""
    refused: int = 0
    """Variants that did not fit."""
    temperature_c: float | None = None
    network_bytes: int = 0
    """Today."""
    network_budget_bytes: int | None = None
    """Of a day."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is on the page."""

    agent_version: str
    releases: Mapping[ReleaseId, Total]
    workers: tuple[WorkerFacts, ...]
    tolls: Mapping[ModelName, Toll]
    streams: tuple[StreamFacts, ...]
    updates: tuple[UpdateFacts, ...]
    budget: BudgetFacts = BudgetFacts()
    frozen: bool = False
    """Whether the fleet's signed metadata have expired, as this device has them."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """One line of the page."""

    labels: tuple[tuple[str, str], ...]
    value: float
    suffix: str = ""


def render(facts: Facts) -> str:
    """Write the page."""
    return "".join(f"{line}\n" for line in _lines(facts))


def _lines(facts: Facts) -> Iterator[str]:
    version = (("version", facts.agent_version),)
    yield from _family("edgeml_build_info", "gauge", "The agent that runs.", [_Sample(version, 1)])
    releases = [(_release(release), total) for release, total in sorted(facts.releases.items())]
    for name, text in _COUNTERS:
        samples = [_Sample(labels, _count(total.counters, name)) for labels, total in releases]
        yield from _family(f"edgeml_{name}_total", "counter", text, samples)
    yield from _family(
        "edgeml_input_violations_total",
        "counter",
        "Requests whose inputs were not as expected, by kind, as of the last closed window; windows, for volume.",
        (
            _Sample((*labels, ("kind", kind)), getattr(total.quality, kind))
            for labels, total in releases
            for kind in _VIOLATIONS
        ),
    )
    yield from _family(
        "edgeml_input_refused_total",
        "counter",
        "Requests that the model's bundle refused for their inputs, as of the last closed window.",
        [_Sample(labels, total.quality.refused) for labels, total in releases],
    )
    yield from _family(
        "edgeml_input_clipped_total",
        "counter",
        "Requests that were served with clipped inputs, as of the last closed window.",
        [_Sample(labels, total.quality.clipped) for labels, total in releases],
    )
    buckets = (one for labels, total in releases for one in _buckets(labels, total))
    yield from _family(
        "edgeml_inference_latency_seconds", "histogram", "Time in the model of each answer.", buckets
    )
    yield from _worker_lines(facts)
    yield from _stream_lines(facts.streams)
    yield from _budget_lines(facts.budget)
    states = [
        _Sample((*_model(update.model), ("state", one.value)), one is update.state)
        for update in facts.updates
        for one in DeviceState
    ]
    yield from _family("edgeml_update_state", "gauge", "1 for where a model's update machine stands.", states)
    outcomes = [
        _Sample((*_model(update.model), ("outcome", one.value)), one is update.outcome)
        for update in facts.updates
        for one in Outcome
    ]
    yield from _family(
        "edgeml_update_outcome",
        "gauge",
        "1 for how a model's last deployment ended; none before one did.",
        outcomes,
    )
    frozen = [_Sample((), facts.frozen)]
    yield from _family(
        "edgeml_frozen",
        "gauge",
        "1 while signed metadata have expired, and nothing new is installed.",
        frozen,
    )


def _worker_lines(facts: Facts) -> Iterator[str]:
    memory = [_Sample(_release(worker.release), worker.memory_bytes) for worker in facts.workers]
    yield from _family(
        "edgeml_worker_memory_bytes", "gauge", "Resident memory of each worker that serves.", memory
    )
    tolls = sorted(facts.tolls.items())
    yield from _family(
        "edgeml_worker_crashes_total",
        "counter",
        "Workers that died, and successors that could not be loaded.",
        [_Sample(_model(model), toll.crashes) for model, toll in tolls],
    )
    yield from _family(
        "edgeml_worker_restarts_total",
        "counter",
        "Workers that replaced a dead one.",
        [_Sample(_model(model), toll.restarts) for model, toll in tolls],
    )


def _budget_lines(budget: BudgetFacts) -> Iterator[str]:
    levels = [_Sample((("level", one.name.lower()),), one is budget.level) for one in Level]
    yield from _family("edgeml_budget_level", "gauge", "1 for how bad it is with the device.", levels)
    decisions = [
        _Sample((*_model(model), ("decision", kind.value), ("cause", cause.value)), count)
        for (model, kind, cause), count in sorted(
            budget.decisions.items(), key=lambda one: (one[0][0], one[0][1].value, one[0][2].value)
        )
    ]
    yield from _family(
        "edgeml_budget_decisions_total", "counter", "What was done to models to keep the budget.", decisions
    )
    turned_away = [_Sample(_model(model), count) for model, count in sorted(budget.turned_away.items())]
    yield from _family(
        "edgeml_requests_turned_away_total", "counter", "Requests refused to spare the device.", turned_away
    )
    granted = [_Sample(_model(model), count) for model, count in sorted(budget.granted.items())]
    yield from _family(
        "edgeml_memory_granted_bytes", "gauge", "Memory set aside for each model's workers.", granted
    )
    used = [_Sample((), budget.used_bytes)]
    yield from _family("edgeml_memory_used_bytes", "gauge", "All workers and what they share.", used)
    if budget.memory_bytes is not None:
        limit = [_Sample((), budget.memory_bytes)]
        yield from _family("edgeml_memory_budget_bytes", "gauge", "What they may use together.", limit)
    refused = [_Sample((), budget.refused)]
    yield from _family(
        "edgeml_admissions_refused_total", "counter", "Variants that did not fit into memory.", refused
    )
    if budget.temperature_c is not None:
        heat = [_Sample((), budget.temperature_c)]
        yield from _family("edgeml_temperature_celsius", "gauge", "The processor's temperature.", heat)
    network = [_Sample((), budget.network_bytes)]
    yield from _family("edgeml_network_today_bytes", "gauge", "Network used today.", network)
    if budget.network_budget_bytes is not None:
        daily = [_Sample((), budget.network_budget_bytes)]
        yield from _family("edgeml_network_budget_bytes", "gauge", "What may be used in a day.", daily)


def _stream_lines(streams: tuple[StreamFacts, ...]) -> Iterator[str]:
    for name, text in (
        ("produced", "Rows of telemetry since the device's buffer was made."),
        ("sent", "Rows that were handed to the link at least once."),
        ("acknowledged", "Rows that the fleet has stored."),
    ):
        samples = [_Sample((("stream", one.stream.value),), getattr(one.loss, name)) for one in streams]
        yield from _family(f"edgeml_telemetry_rows_{name}_total", "counter", text, samples)
    dropped = [
        _Sample((("stream", one.stream.value), ("reason", reason.value)), one.loss.reasons.count(reason))
        for one in streams
        for reason in DropReason
    ]
    yield from _family(
        "edgeml_telemetry_rows_dropped_total", "counter", "Rows that were given up, by reason.", dropped
    )
    held = [_Sample((("stream", one.stream.value),), one.held) for one in streams]
    yield from _family("edgeml_telemetry_rows_held", "gauge", "Rows that wait for the fleet.", held)
    held_back = [_Sample((("stream", one.stream.value),), one.held_back) for one in streams]
    yield from _family(
        "edgeml_telemetry_rows_held_back",
        "gauge",
        "Rows that wait because of the network's budget.",
        held_back,
    )


def _buckets(labels: tuple[tuple[str, str], ...], total: Total) -> Iterator[_Sample]:
    for octave in range(BUCKET_FIRST, BUCKET_LAST + 1):
        count = sum(total.latency[: octave * BINS_PER_OCTAVE])
        yield _Sample((*labels, ("le", repr(2**octave / 1e6))), count, "_bucket")
    count = sum(total.latency)
    yield _Sample((*labels, ("le", "+Inf")), count, "_bucket")
    yield _Sample(labels, total.latency_ns / 1e9, "_sum")
    yield _Sample(labels, count, "_count")


def _family(name: str, kind: str, text: str, samples: Iterable[_Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for one in samples:
        labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in one.labels)
        shown = f"{{{labels}}}" if labels else ""
        number = repr(one.value) if isinstance(one.value, float) else str(int(one.value))
        yield f"{name}{one.suffix}{shown} {number}"


def _count(counters: Counters, name: str) -> int:
    count: int = getattr(counters, name)
    return count


def _release(release: ReleaseId) -> tuple[tuple[str, str], ...]:
    model, version = parse_release(release)
    return ("model", model), ("version", version)


def _model(model: ModelName) -> tuple[tuple[str, str], ...]:
    return (("model", model),)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
