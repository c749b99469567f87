"""The page of the fleet that Prometheus reads: what an operator wants to be woken for, as text.

Decides names, labels and units. Pure: what is shown comes from `overview`. Counters of devices begin with their enrolment or
with their buffer, those of refused messages with the controller's process.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from .floods import Flood
from .overview import DeviceView, FleetView

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NOTHING: Final = Flood(0, 0, 0)
_OF_A_DEVICE: Final[tuple[tuple[str, str, str, Callable[[DeviceView], int]], ...]] = (
    ("online", "gauge", "Whether the device is there.", lambda one: one.online),
    (
        "quarantined",
        "gauge",
        "Whether two devices use this identity, and nobody has readmitted it.",
        lambda one: one.quarantine is not None,
    ),
    (
        "frozen",
        "gauge",
        "Whether all signed metadata that the device gets have expired: it installs nothing new.",
        lambda one: one.frozen_since_ms is not None,
    ),
    (
        "turned_away_messages_total",
        "counter",
        "Messages beyond the device's quota, since it was enrolled.",
        lambda one: (one.over_quota or _NOTHING).messages,
    ),
    (
        "turned_away_bytes_total",
        "counter",
        "Their bytes.",
        lambda one: (one.over_quota or _NOTHING).payload_bytes,
    ),
    (
        "rows_produced_total",
        "counter",
        "Rows of telemetry, as the device counts them.",
        lambda one: one.rows.produced,
    ),
    ("rows_dropped_total", "counter", "Those of them that are lost.", lambda one: one.rows.dropped),
)


def render(view: FleetView) -> str:
    """Write the page.

    >>> print(render(FleetView(5_000, None, (), {}, ())).splitlines()[-1])
    edgeml_fleet_rollouts_unfinished 0
    """
    return "".join(f"{line}\n" for line in _lines(view))


def _lines(view: FleetView) -> Iterator[str]:
    for name, kind, text, count in _OF_A_DEVICE:
        samples = [(f'{{device="{one.device}"}}', count(one)) for one in view.devices]
        yield from _family(f"edgeml_fleet_device_{name}", kind, text, samples)
    controller = view.controller
    if controller is not None:
        yield from _family(
            "edgeml_fleet_controller_connected",
            "gauge",
            "Whether the controller had its broker when it last wrote.",
            [("", controller.connected)],
        )
        yield from _family(
            "edgeml_fleet_controller_seen_timestamp_seconds",
            "gauge",
            "When the controller last wrote.",
            [("", controller.seen_at_ms // 1000)],
        )
        refused = [(f'{{reason="{why}"}}', count) for why, count in sorted(controller.refused.items())]
        yield from _family(
            "edgeml_fleet_refused_messages_total", "counter", "Messages that were not taken in.", refused
        )
    yield from _family(
        "edgeml_fleet_rollouts_unfinished",
        "gauge",
        "Rollouts under way.",
        [("", len(view.unfinished_rollouts))],
    )


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Write one metric; names of devices and reasons hold nothing that would have to be escaped."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{labels} {int(value)}"
