"""Turns a profile and measurements into the profile of one's own board.

Decides which quantities a record can replace: what the machine says of itself (cores, clock, memory, extensions) is taken as
it is; figures of different kinds of machines are never mixed. How fast it computes needs the models that were measured, too,
and is fitted by those who read models. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .errors import ConfigError
from .host_profile import architecture_of, channel_block, model_memory
from .ids import is_name
from .machine_facts import Throttling
from .measurement import MeasurementRecord
from .profile import DeviceRuntime, HardwareProfile, Origin, Quantity


def calibrate(profile: HardwareProfile, records: Sequence[MeasurementRecord], name: str) -> HardwareProfile:
    """Make a profile of what was measured on one kind of machine.

    Args:
        profile: where everything comes from that the records do not tell.
        records: of one kind of machine, at least one; none that heat slowed down.
        name: of the new profile.

    Raises:
        ConfigError: The records are of several machines, of another architecture than the profile, or were slowed down.
    """
    _check(profile, records, name)
    facts = records[0].machine
    runtimes = sorted({record.runtime for record in records})
    source = f"measured on {records[0].host} with {', '.join(runtimes)}, edgeml measure"[:200]
    found = {
        "cores": (facts.cores, "cores"),
        "clock": (facts.clock_max_mhz, "MHz"),
        "memory": (facts.memory_bytes, "bytes"),
    }
    quantities = {
        field: Quantity(value, unit, Origin.MEASURED, source)
        for field, (value, unit) in found.items()
        if value > 0
    }
    if facts.memory_bytes:
        quantities["model_memory"] = model_memory(facts.memory_bytes)
    ran = {record.runtime.partition(" ")[0] for record in records}
    known = (
        *profile.runtimes,
        *(one for one in DeviceRuntime if one.value in ran and one not in profile.runtimes),
    )
    if facts.extensions:
        quantities["channel_block"] = channel_block(facts.extensions)
    return msgspec.structs.replace(
        profile,
        name=name,
        title=f"{profile.title}, as measured on {records[0].host}",
        processor=facts.processor or profile.processor,
        extensions=facts.extensions or profile.extensions,
        runtimes=known,
        notes=_notes(profile, records),
        **quantities,
    )


def _check(profile: HardwareProfile, records: Sequence[MeasurementRecord], name: str) -> None:
    if not is_name(name):
        raise ConfigError(f"{name!r} is not a valid name for a profile", hint="use a-z 0-9 . _ -")
    if not records:
        raise ConfigError(
            "no measurement is given", hint="make one on the board: edgeml measure BUNDLE --out FILE"
        )
    others = {record.host for record in records} - {records[0].host}
    if others:
        raise ConfigError(
            f"the measurements are of {records[0].host} and of {min(others)}",
            hint="make a profile of each",
        )
    machine = records[0].machine.machine
    if architecture_of(machine) is not profile.architecture:
        raise ConfigError(
            f"the measurements are of {machine or 'an unknown architecture'}, profile {profile.name} is of {profile.architecture.value}",
            hint="begin with a profile of the same architecture, or with `host`",
        )
    check_steady(records)


def check_steady(records: Sequence[MeasurementRecord]) -> None:
    """Refuse what says nothing of a machine in its usual state.

    Raises:
        ConfigError: A record was slowed down.
    """
    slowed = [record.release for record in records if record.throttling is Throttling.LIKELY]
    if slowed:
        raise ConfigError(
            f"the measurement of {slowed[0]} was slowed down by heat or its governor",
            hint="cool the board, set the governor to performance, and measure again",
        )


def _notes(profile: HardwareProfile, records: Sequence[MeasurementRecord]) -> str:
    lines = [
        f"{record.release} {record.variant}: p50 {record.latency_p50_ms:.3f} ms, {record.peak_memory_bytes / 1e6:.1f} MB, "
        f"{record.runtime}, {record.threads} thread{'s' if record.threads > 1 else ''}."
        for record in sorted(records, key=lambda one: (one.release, one.variant, one.threads))
    ]
    return " ".join([profile.notes.strip(), f"Measured on {records[0].host}:", *lines]).strip()
