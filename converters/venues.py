"""Which runtimes candidates are judged on: those of the profiles that can be reached from here.

Decides what stands for each of them. A runtime that a profile has and that cannot be reached is left out here; it is
told in the report, and a candidate that was run on none of a profile's runtimes is refused (`select.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeml.errors import ConfigError
from edgeml.guest import Guest, version_here, version_in
from edgeml.profile import DeviceRuntime, HardwareProfile
from edgeml.runtime import installed_runtimes

from .interpreters import place_of
from .verify import Venue


def venues_for(profiles: Sequence[HardwareProfile]) -> tuple[Venue, ...]:
    """Find a venue for each runtime of the profiles, in the order of `DeviceRuntime`."""
    wanted = {runtime for profile in profiles for runtime in profile.runtimes}
    found = [_venue(runtime) for runtime in DeviceRuntime if runtime in wanted]
    return tuple(venue for venue in found if venue is not None)


def _venue(runtime: DeviceRuntime) -> Venue | None:
    try:
        place = place_of(runtime)
    except ConfigError:
        return None
    if place.python is not None:
        return Venue(runtime, place, version_in(place.python, Guest(runtime.value)))
    name = (place.runtime or runtime).value
    version = installed_runtimes((name,)).get(name, "") or (
        version_here(Guest(name)) if name in {one.value for one in Guest} else ""
    )
    return Venue(runtime, place, version) if version else None
