"""How the demo's story ended, and whether it ended as it should."""

from __future__ import annotations

from dataclasses import dataclass

from .stage import RELEASES
from .telling import Row


@dataclass(slots=True)
class Ending:
    """What came out."""

    outcomes: dict[str, str]
    reasons: dict[str, str]
    devices_by_release: dict[str, int]
    touched_by_bad_release: int
    drifted: tuple[str, ...]
    rotated: tuple[str, ...]
    bundle_bytes_fetched: int
    bundle_bytes: dict[str, int]
    latency_p50_ms: float
    inferences: int
    restarts: dict[str, int]
    elapsed_s: float

    @property
    def good(self) -> bool:
        """Whether the story ended as it should."""
        expected = {RELEASES[0]: "completed", RELEASES[1]: "completed", RELEASES[2]: "rolled_back"}
        return (
            self.outcomes == expected
            and list(self.devices_by_release) == [RELEASES[1]]
            and self.drifted == self.rotated
        )


def rows(ending: Ending, devices: int) -> tuple[Row, ...]:
    """The table at the end."""
    bad = RELEASES[2]
    return (
        *(
            Row(
                f"rollout of {release}",
                state.replace("_", " "),
                state == ("rolled_back" if release == bad else "completed"),
            )
            for release, state in ending.outcomes.items()
        ),
        Row(f"what stopped {bad}", ending.reasons.get(bad, ""), bool(ending.reasons.get(bad))),
        Row(
            f"devices that tried {bad}",
            f"{ending.touched_by_bad_release} of {devices}",
            0 < ending.touched_by_bad_release < devices,
        ),
        Row(
            "what devices run now",
            ", ".join(f"{r}: {n}" for r, n in ending.devices_by_release.items()),
            ending.devices_by_release == {RELEASES[1]: devices},
        ),
        Row("flagged for drift", ", ".join(ending.drifted), ending.drifted == ending.rotated),
        Row("bundles fetched over HTTP", f"{ending.bundle_bytes_fetched / 1000:.0f} kB"),
        Row("inferences counted by the fleet", f"{ending.inferences}"),
        Row("local HTTP round trip, median", f"{ending.latency_p50_ms:.1f} ms on this machine"),
        Row(
            "processes that were restarted",
            ", ".join(f"{name} {count}x" for name, count in ending.restarts.items() if count) or "none",
        ),
        Row("time", f"{ending.elapsed_s:.0f} s"),
    )
