"""Tells the demo's story and judges its end.

Decides the chapters and what must come out. Everything in it is real but the crowd of simulated devices: their machine,
link, telemetry, signatures and models are real, their hardware is not. Other rooms are driven by their commands, as a
user would; what the fleet knows is read from its database.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgeml.clock import SystemClock
from edgeml.drift import Verdict
from edgeml.errors import StateError
from edgeml.port import free_port

from .. import config as fleet_config
from .. import enroll, overview
from ..config import FleetHome, database_url
from ..enroll import NewDevice
from ..rollout import FINISHED, RolloutState
from ..store import Store
from ..tables import counted, words
from .camera import Camera, Pace, Scene
from .ending import Ending
from .keeper import Keeper
from .stage import MODEL, PROFILES, RELEASES, Conversion, Conversions, Stage, run_edgeml
from .telling import Telling

REAL_DEVICES: Final = ("cam-1", "cam-2", "cam-3")
WINDOW_S: Final = 2.0
SLICE_S: Final = 2.0
SOAK: Final = "8s"
STEP_TIMEOUT_S: Final = 150.0
POLL_S: Final = 0.3
DRIFT_WATCH_S: Final = 8.0
"""How long the drift verdict must stay the same before it is believed here."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked of the demo."""

    stage: Stage
    simulated: int


class Story:
    """One telling."""

    def __init__(self, wish: Wish, telling: Telling, keeper: Keeper) -> None:
        self._stage = wish.stage
        self._telling = telling
        self._keeper = keeper
        self._home = FleetHome(self._stage.fleet)
        self._simulated = tuple(f"sim-{index + 1:02}" for index in range(wish.simulated))
        self._everyone = (*REAL_DEVICES, *self._simulated)
        self._rotated = (REAL_DEVICES[-1], self._simulated[len(self._simulated) // 2])
        self._conversions = Conversions(self._stage)
        self._cameras: tuple[Camera, ...] = ()
        self._reasons: dict[str, str] = {}
        self._touched = 0

    def tell(self) -> Ending:
        """Tell it from the beginning to the end.

        Raises:
            EdgemlError: A step failed, or took longer than it may.
        """
        try:
            self._make_models()
            self._found_fleet()
            self._start_processes()
            self._roll_out(0, "100%", "The first release goes to everybody.")
            self._look_around()
            self._roll_out(1, "20%,100%", "A better one goes out in waves.")
            self._roll_out(
                2,
                "20%,100%",
                "A third one loads, passes its own golden vectors, and answers worse in the field.",
            )
            drifted = self._turn_cameras()
            return self._ending(drifted)
        finally:
            for camera in self._cameras:
                camera.stop()
            self._conversions.close()

    def _make_models(self) -> None:
        self._telling.chapter("1. A model is trained and shrunk")
        with self._telling.waiting("training three versions of a small CNN on scikit-learn's digits"):
            self._conversions.wait_for_training()
        with self._telling.waiting("converting 1.0.0, verifying every candidate on its runtime"):
            first = self._conversions.get(0)
        self._tell_conversion(first)

    def _tell_conversion(self, conversion: Conversion) -> None:
        for line in summarise(conversion.said):
            self._telling.say(line if line.startswith(" ") else f"{MODEL}@{conversion.version} {line}")

    def _found_fleet(self) -> None:
        self._telling.chapter("2. A fleet: keys, a signed repository, devices")
        if not (self._home.repository / "metadata").exists():
            run_edgeml("keys", "init", "--dir", str(self._home.directory))
            broker, http = free_port(), free_port()
            text = self._home.settings.read_text().replace("18830", str(broker)).replace("18080", str(http))
            text = text.replace("# tick_s = 1.0", "tick_s = 0.5").replace(
                "# slice_s = 60.0", f"slice_s = {SLICE_S}"
            )
            self._home.settings.write_text(text)
        self._config = fleet_config.load(self._home)
        self._store = Store(database_url(self._home, self._config))
        self._publish(0)
        with self._telling.waiting("enrolling devices") as bar:
            for done, name in enumerate(self._everyone):
                self._enrol(name, PROFILES[0] if name in REAL_DEVICES or done % 2 else PROFILES[1])
                bar.at(done + 1, len(self._everyone))
        self._telling.say(f"{len(self._everyone)} devices have their own token and the fleet's trust anchor")

    def _publish(self, index: int) -> None:
        bundles = self._conversions.get(index).bundles
        run_edgeml("fleet", "publish", *map(str, bundles), "--dir", str(self._home.directory))
        size = sum(path.stat().st_size for path in bundles)
        self._telling.say(
            f"{RELEASES[index]} is signed and published: {counted(len(bundles), 'variant')}, {size / 1000:.1f} kB"
        )

    def _kit(self, name: str) -> Path:
        return self._stage.kits / ("real" if name in REAL_DEVICES else "simulated") / name

    def _enrol(self, name: str, profile: str) -> None:
        kit = self._kit(name)
        if is_enrolled(self._store, name):
            return
        listen = f"127.0.0.1:{free_port()}" if name in REAL_DEVICES else ""
        new = NewDevice(name, profile, kit, listen=listen)
        enroll.add(self._home, self._config, self._store, new, SystemClock().now_ms())
        settings = kit / enroll.SETTINGS
        settings.write_text(settings.read_text().replace("window_s = 60", f"window_s = {WINDOW_S}"))

    def _start_processes(self) -> None:
        self._keeper.keep("fleet", ["fleet", "serve", "--dir", str(self._home.directory)])
        for name in REAL_DEVICES:
            self._keeper.keep(name, ["agent", "run", "-c", str(self._kit(name) / enroll.SETTINGS)])
        if self._simulated:
            self._keeper.keep(
                "simulator",
                [
                    "agent",
                    "simulate",
                    str(self._stage.kits / "simulated"),
                    "--images",
                    str(self._stage.field),
                    "--scenario",
                    str(self._scenario),
                ],
            )
        with np.load(self._stage.field, allow_pickle=False) as file:
            scene = Scene(file["field_x"], file["field_y"].astype(np.int64))
        self._cameras = tuple(Camera(name, self._port(name), MODEL, scene, Pace()) for name in REAL_DEVICES)
        for camera in self._cameras:
            camera.start()
        with self._telling.waiting("waiting for the devices to connect") as bar:
            self._wait_until(lambda: self._online(bar) == len(self._everyone), "every device to be online")
        self._telling.say(
            f"broker, controller, {len(REAL_DEVICES)} real agents and {len(self._simulated)} simulated devices are up"
        )

    @property
    def _scenario(self) -> Path:
        return self._stage.kits / "scenario.json"

    def _port(self, name: str) -> int:
        settings = msgspec.toml.decode((self._kit(name) / enroll.SETTINGS).read_bytes())
        return int(settings["serve"]["listen"].rpartition(":")[2])

    def _online(self, bar: Any) -> int:
        view = overview.status(self._store, SystemClock().now_ms())
        online = sum(device.online for device in view.devices)
        bar.at(online, len(self._everyone))
        return online

    def _roll_out(self, index: int, waves: str, text: str) -> None:
        release = RELEASES[index]
        self._telling.chapter(f"{index + 3}. {text}")
        if index:
            with self._telling.waiting(f"converting {release}"):
                conversion = self._conversions.get(index)
            self._tell_conversion(conversion)
            self._publish(index)
        found = next((one for one in overview.rollouts(self._store) if one.plan.release == release), None)
        if found is None:
            run_edgeml(
                "fleet",
                "rollout",
                "start",
                release,
                "--waves",
                waves,
                "--soak",
                SOAK,
                "--dir",
                str(self._home.directory),
            )
        with self._telling.waiting(f"rolling out {release}") as bar:
            self._wait_until(lambda: self._finished(release, bar), f"the rollout of {release} to end")
        self._tell_rollout(release)

    def _finished(self, release: str, bar: Any) -> bool:
        view = self._view(release)
        if view is None:
            return False
        running = sum(device.release == release for device in view.devices)
        bar.at(
            running,
            len(self._everyone),
            f"wave {view.rollout.wave + 1} {view.rollout.phase.value}: {running} devices run it",
        )
        if view.rollout.state is RolloutState.PAUSED:
            raise StateError(
                f"the rollout of {release} is paused: {view.rollout.reason}",
                hint=f"look into {self._stage.logs}",
            )
        return view.rollout.state in FINISHED

    def _view(self, release: str) -> overview.RolloutView | None:
        found = next((one for one in overview.rollouts(self._store) if one.plan.release == release), None)
        return None if found is None else overview.rollout(self._store, found.id)

    def _tell_rollout(self, release: str) -> None:
        view = self._view(release)
        assert view is not None
        touched = sum(device.part is not overview.Part.NOT_ASKED for device in view.devices)
        self._reasons[release] = view.rollout.reason
        self._telling.say(
            f"{release}: {words(view.rollout.state)} after {touched} of {len(self._everyone)} devices"
        )
        if view.rollout.state is RolloutState.ROLLED_BACK:
            self._touched = touched
            self._telling.say(f"stopped by {view.rollout.reason}")

    def _look_around(self) -> None:
        latencies = [latency for camera in self._cameras for latency in camera.latencies_ms]
        if latencies:
            self._telling.say(
                f"a camera's question over local HTTP is answered in {statistics.median(latencies):.1f} ms (median, this machine)"
            )

    def _turn_cameras(self) -> tuple[str, ...]:
        self._telling.chapter("6. Two cameras are turned by 90 degrees")
        self._cameras[-1].rotated.set()
        self._scenario.write_bytes(msgspec.json.encode({"rotated": [self._rotated[1]]}))
        stable: list[tuple[float, tuple[str, ...]]] = []

        def flagged() -> bool:
            now = time.monotonic()
            names = self._flagged()
            stable.append((now, names))
            since = [at for at, found in stable if found != self._rotated]
            return names == self._rotated and now - (max(since) if since else stable[0][0]) >= DRIFT_WATCH_S

        with self._telling.waiting("waiting for the evidence"):
            self._wait_until(flagged, f"exactly {' and '.join(self._rotated)} to be flagged")
        names = self._flagged()
        for row in overview.drift(self._store, SystemClock().now_ms()):
            if row.device in names:
                top = ", ".join(column.column for column in row.columns[:3])
                self._telling.say(
                    f"{row.device}: {row.verdict.value}, evidence e^{row.log_e:.0f}, effect {row.effect:.2f}, most in {top}"
                )
        return names

    def _flagged(self) -> tuple[str, ...]:
        rows = overview.drift(self._store, SystemClock().now_ms())
        return tuple(sorted(str(row.device) for row in rows if row.verdict in {Verdict.WARN, Verdict.PAGE}))

    def _ending(self, drifted: tuple[str, ...]) -> Ending:
        view = overview.status(self._store, SystemClock().now_ms())
        rollouts = {
            str(one.plan.release): one.state.value for one in reversed(overview.rollouts(self._store))
        }
        by_release = {str(release): count for release, count in view.releases.items()}
        sizes = {
            release: sum(path.stat().st_size for path in self._conversions.get(index).bundles)
            for index, release in enumerate(RELEASES)
        }
        latencies = [latency for camera in self._cameras for latency in camera.latencies_ms]
        return Ending(
            outcomes=rollouts,
            reasons=self._reasons,
            devices_by_release=by_release,
            touched_by_bad_release=self._touched,
            drifted=drifted,
            rotated=self._rotated,
            bundle_bytes_fetched=overview.fetched_bytes(self._store),
            bundle_bytes=sizes,
            latency_p50_ms=statistics.median(latencies) if latencies else 0.0,
            inferences=overview.inferences(self._store),
            restarts=self._keeper.restarts(),
            elapsed_s=self._telling.elapsed_s,
        )

    def _wait_until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not done():
            if time.monotonic() > deadline:
                raise StateError(
                    f"waited {STEP_TIMEOUT_S:.0f} s for {what}",
                    hint=f"the processes' words are in {self._stage.logs}",
                )
            time.sleep(POLL_S)


def summarise(said: dict[str, Any]) -> list[str]:
    """Tell what a conversion came to, from what `edgeml convert --json` printed."""
    report = said["report"]
    rows = {row["variant"]: row for row in report["candidates"]}
    plain = rows["onnx-fp32"]
    lines = []
    for bundle in said["bundles"]:
        row = rows[bundle["variant"]]
        run = next(one for one in row["runs"] if one["value"] is not None)
        reasons = {one["profile"]: one["reason"].rpartition("; ")[2] for one in row["verdicts"]}
        lines.append(
            f"for {', '.join(bundle['profiles'])}: {bundle['variant']}, {row['length_bytes'] / 1000:.1f} kB"
            f" (fp32: {plain['length_bytes'] / 1000:.1f} kB), accuracy {run['value']:.3f} (before: {report['baseline']:.3f}),"
            f" {run['latency_p50_ms'] * 1000:.0f} µs on this host"
        )
        lines += [
            f"    {profile}: {reason}" for profile, reason in reasons.items() if profile in bundle["profiles"]
        ]
    return lines


def is_enrolled(store: Store, name: str) -> bool:
    """Tell whether a device is enrolled."""
    return any(device.device == name for device in overview.status(store, 0).devices)
