"""Shows the fleet to people: tables and bars.

Decides wording, columns and colours only. What is shown comes from `overview`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edgeml.telemetry import InputQuality

from .overview import DeviceView, FleetView, ModelView, Part, RolloutView
from .rollout import FINISHED, MetricEvidence, Rollout, RolloutState

if TYPE_CHECKING:
    from .drift_report import DriftRow

EVENTS_SHOWN: Final = 12
FROZEN_SHOWN: Final = 8
BAR_WIDTH: Final = 40
_STYLES: Final = {
    RolloutState.COMPLETED: "green",
    RolloutState.RUNNING: "cyan",
    RolloutState.PAUSED: "yellow",
    RolloutState.ROLLING_BACK: "red",
    RolloutState.ROLLED_BACK: "red",
    RolloutState.ABORTED: "red",
}
_PART_STYLES: Final = {
    Part.DONE: "green",
    Part.ASKED: "cyan",
    Part.FAILED: "red",
    Part.REVERTED: "yellow",
    Part.NOT_ASKED: "bright_black",
    Part.QUARANTINED: "magenta",
    Part.REMOVED: "bright_black",
}


_VERDICT_STYLES: Final = {"ok": "green", "warn": "yellow", "page": "red", "unknown": "bright_black"}


def show(renderable: RenderableType) -> None:
    """Print to standard output, at full width if that is no terminal.

    Every text is shown as it is: reasons are what devices say, and rich would take brackets and colons in them for its own.
    """
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    console.print(renderable)


def ago(at_ms: int | None, now_ms: int) -> str:
    """Write how long ago something was.

    >>> ago(None, 0), ago(1_000, 4_000), ago(0, 7_200_000)
    ('never', '3 s ago', '2 h ago')
    """
    if at_ms is None:
        return "never"
    seconds = max(0, now_ms - at_ms) // 1000
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def counted(count: int, noun: str) -> str:
    """Say how many of something there are.

    >>> counted(1, "device"), counted(0, "device")
    ('1 device', '0 devices')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def words(state: enum.Enum) -> str:
    """Name a state for people.

    >>> words(RolloutState.ROLLED_BACK)
    'rolled back'
    """
    return str(state.value).replace("_", " ")


def devices_table(devices: Iterable[DeviceView], now_ms: int) -> Table:
    """One line a device and model; a device without any model has one line too."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "DEVICE",
        "PROFILE",
        "LINK",
        "SEEN",
        "MODEL",
        "RUNS",
        "WANTED",
        "STATE",
        "ROWS LOST",
        "TURNED AWAY",
    ):
        table.add_column(column, overflow="fold")
    for device in devices:
        for model in device.models or (None,):
            table.add_row(
                device.device,
                device.profile,
                _link(device),
                ago(device.last_seen_ms, now_ms),
                *(_model_cells(model) if model else ("-",) * 4),
                str(device.rows.dropped),
                _turned_away(device, now_ms),
            )
    return table


def fleet(view: FleetView, *, controller_runs: bool) -> RenderableType:
    """Describe the whole fleet."""
    online = sum(device.online for device in view.devices)
    lines = [f"{counted(len(view.devices), 'device')}, {online} online"]
    for release, count in sorted(view.releases.items()):
        lines.append(f"  {release} on {count}")
    if not controller_runs:
        lines.append("the controller is not running: start it with `edgeml fleet serve`")
    elif view.controller is not None and not view.controller.connected:
        lines.append("the controller runs, but has no connection to the broker")
    for why, count in sorted((view.controller.refused if view.controller else {}).items()):
        lines.append(f"  {counted(count, 'message')} refused: {why}")
    lines += _signatures(view)
    lines += [
        f"{one.device} is in quarantine since {_time(one.quarantine.since_ms)}: {one.quarantine.reason};"
        f" see docs/identity.md, then `edgeml fleet device readmit {one.device}`"
        for one in view.devices
        if one.quarantine is not None
    ]
    lines += [
        f"rollout {one} is under way: edgeml fleet rollout status {one}" for one in view.unfinished_rollouts
    ]
    return Group(Text("\n".join(lines)), Text(""), devices_table(view.devices, view.at_ms))


def _signatures(view: FleetView) -> list[str]:
    """What is wrong with what the fleet signs, here and as devices have it."""
    lines = []
    if view.signed_until_ms is not None and view.signed_until_ms <= view.at_ms:
        lines.append(
            f"the fleet's signatures expired {ago(view.signed_until_ms, view.at_ms)}: no device installs anything; "
            "`edgeml fleet serve` renews them, `edgeml fleet publish` those of the offline keys"
        )
    frozen = [one for one in view.devices if one.frozen_since_ms is not None]
    if not frozen:
        return lines
    names = ", ".join(
        f"{one.device} ({ago(one.frozen_since_ms, view.at_ms)})" for one in frozen[:FROZEN_SHOWN]
    )
    more = f" and {len(frozen) - FROZEN_SHOWN} more" if len(frozen) > FROZEN_SHOWN else ""
    return [
        *lines,
        f"{counted(len(frozen), 'device')} frozen: {names}{more}",
        "  signed metadata have expired there, and nothing new is installed: does `edgeml fleet serve` run and sign?",
    ]


def rollouts_table(rollouts: Iterable[Rollout]) -> Table:
    """One line a rollout."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ROLLOUT", "RELEASE", "STATE", "WAVE", "STARTED", "WHY"):
        table.add_column(column, overflow="fold")
    for one in rollouts:
        state = Text(words(one.state), _STYLES[one.state])
        table.add_row(one.id, one.plan.release, state, _wave(one), _time(one.created_at_ms), one.reason)
    return table


def rollout(view: RolloutView) -> RenderableType:
    """Describe one rollout: bars of devices, history, evidence."""
    one = view.rollout
    head = Text.assemble(f"{one.id}  {one.plan.release}  ", (words(one.state), _STYLES[one.state]))
    if one.state not in FINISHED:
        head.append(f"  wave {_wave(one)}, {one.phase.value}")
    if one.requested is not None:
        head.append(f"  ({words(one.requested)} asked for, not carried out yet)", "yellow")
    if one.reason:
        head.append(f"  {one.reason}")
    parts: list[RenderableType] = [head, Text(""), _bars(view), Text("")]
    history = Table(box=None, pad_edge=False, show_header=False)
    history.add_column(style="bright_black", no_wrap=True)
    history.add_column(overflow="fold")
    for event in view.events[-EVENTS_SHOWN:]:
        history.add_row(_time(event.at_ms), event.line)
    parts.append(history)
    if view.evidence:
        parts += [Text(""), _evidence_table(view.evidence)]
    return Group(*parts)


def drift_table(rows: Iterable[DriftRow]) -> Table:
    """One line a device and model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("DEVICE", "RUNS", "VERDICT", "LOG E", "EFFECT", "INFERENCES", "MOST IN", "INPUTS"):
        table.add_column(
            column,
            overflow="fold",
            justify="right" if column in {"LOG E", "EFFECT", "INFERENCES"} else "left",
        )
    for row in rows:
        table.add_row(
            row.device,
            row.release or "-",
            Text(row.verdict.value, _VERDICT_STYLES[row.verdict.value]),
            f"{row.log_e:.1f}",
            f"{row.effect:.2f}",
            str(row.rows),
            ", ".join(column.column for column in row.columns[:3]),
            violations(row.inputs),
        )
    return table


def _model_cells(model: ModelView) -> tuple[str, str, str, str]:
    wanted = model.desired_release or "-"
    if model.desired_release is not None and model.reported_generation < model.desired_generation:
        wanted += " (not answered yet)"
    said = model.outcome or model.state
    state = words(said) if said else "-"
    return model.model, model.release or "-", wanted, f"{state}: {model.reason}" if model.reason else state


def _link(device: DeviceView) -> Text:
    if device.quarantine is not None:
        return Text("quarantined", "bold red")
    return Text("online", "green") if device.online else Text("offline", "bright_black")


def _turned_away(device: DeviceView, now_ms: int) -> Text:
    flood = device.over_quota
    if flood is None:
        return Text("0")
    return Text(f"{flood.messages}, {ago(flood.last_at_ms, now_ms)}", "yellow")


def violations(quality: InputQuality) -> str:
    """Say what was wrong with inputs.

    >>> violations(InputQuality()), violations(InputQuality(out_of_range=12, refused=3))
    ('-', '12 out of range, 3 refused')
    """
    counts = {name: getattr(quality, name) for name in InputQuality.__struct_fields__}
    said = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return ", ".join(said) or "-"


def _bars(view: RolloutView) -> Table:
    total = max(1, len(view.devices))
    table = Table(box=None, pad_edge=False, show_header=False)
    for part in Part:
        count = view.parts[part.value]
        bar = ProgressBar(
            total,
            count,
            width=BAR_WIDTH,
            complete_style=_PART_STYLES[part],
            finished_style=_PART_STYLES[part],
        )
        table.add_row(part.value, bar, str(count))
    return table


def _evidence_table(evidence: Iterable[MetricEvidence]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("METRIC", "LOG E", "NEW", "OF", "BEFORE", "OF"):
        table.add_column(column, justify="left" if column == "METRIC" else "right")
    for one in evidence:
        table.add_row(
            words(one.metric),
            f"{one.log_e:.2f}",
            f"{one.candidate_rate:.2%}",
            str(one.candidate_trials),
            f"{one.incumbent_rate:.2%}",
            str(one.incumbent_trials),
        )
    return table


def _wave(one: Rollout) -> str:
    return f"{min(one.wave + 1, len(one.plan.waves))} of {len(one.plan.waves)}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
