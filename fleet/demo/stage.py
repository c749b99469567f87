"""Prepares what the demo shows: models, bundles, keys, device kits.

Every step is done by the command a user would type, and is skipped if what it makes is there already, so that a demo
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeml.errors import ArtifactError, ConfigError, EdgemlError, StorageError, TransferError

MODEL: Final = "digits"
VERSIONS: Final = ("1.0.0", "1.1.0", "1.2.0")
RELEASES: Final = tuple(f"{MODEL}@{version}" for version in VERSIONS)
PROFILES: Final = ("generic-x86-64", "raspberry-pi-4")
MAX_DROP: Final = "1%"
_KINDS: Final = {2: ConfigError, 3: ArtifactError, 4: TransferError, 5: StorageError}
OUTPUT_MAX: Final = 2000


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `edgeml convert --json` said of one version."""

    version: str
    bundles: tuple[Path, ...]
    said: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """The demo's directory."""

    directory: Path

    @property
    def models(self) -> Path:
        """Trained models and data."""
        return self.directory / "models"

    @property
    def bundles(self) -> Path:
        """Bundles, by version."""
        return self.directory / "bundles"

    @property
    def fleet(self) -> Path:
        """The fleet's directory."""
        return self.directory / "fleet"

    @property
    def kits(self) -> Path:
        """Device kits."""
        return self.directory / "devices"

    @property
    def logs(self) -> Path:
        """What the processes said."""
        return self.directory / "logs"

    @property
    def field(self) -> Path:
        """Images that no model has seen."""
        return self.models / "field.npz"

    def hints(self) -> tuple[str, ...]:
        """What to look at while the demo runs on."""
        return (
            f"edgeml fleet status --dir {self.fleet}",
            f"edgeml fleet rollout list --dir {self.fleet}",
            f"edgeml fleet drift --dir {self.fleet}",
            f"edgeml agent status -c {self.kits}/real/cam-1/agent.toml",
            f"tail -f {self.logs}/*.log",
        )

    def train(self) -> None:
        """Train three versions: a first one, a better one, and one that is only good at home."""
        if not self.field.exists():
            run_edgeml(
                "sample",
                "digits",
                "--out",
                str(self.models),
                "--release",
                "v1",
                "--release",
                "v2",
                "--release",
                "v3",
            )

    def convert(self, index: int) -> Conversion:
        """Shrink one version for both profiles."""
        version, folder = VERSIONS[index], self.models / f"v{index + 1}"
        out = self.bundles / version
        record = out / "convert.json"
        if not record.exists():
            profiles = [word for profile in PROFILES for word in ("--profile", profile)]
            said = run_edgeml(
                "convert", f"{folder / 'digits.py'}:model", "--data", str(folder / "data.npz"), *profiles,
                "--name", MODEL, "--version", version, "--max-drop", MAX_DROP, "--labels", ",".join("0123456789"),
                "--out", str(out), "--json",
            )  # fmt: skip
            record.write_text(said)
        loaded: dict[str, Any] = json.loads(record.read_text())
        return Conversion(version, tuple(sorted(out.glob("*.edgeml"))), loaded)


class Conversions:
    """Trains, then converts one version after the other, in the background."""

    def __init__(self, stage: Stage) -> None:
        self._pool = ThreadPoolExecutor(1, "convert")
        self._trained: Future[None] = self._pool.submit(stage.train)
        self._futures: list[Future[Conversion]] = [
            self._pool.submit(stage.convert, index) for index in range(len(VERSIONS))
        ]

    def wait_for_training(self) -> None:
        """Wait until the models are trained."""
        self._trained.result()

    def get(self, index: int) -> Conversion:
        """Wait for a version."""
        return self._futures[index].result()

    def close(self) -> None:
        """Drop what was not begun."""
        self._pool.shutdown(cancel_futures=True)


def run_edgeml(*arguments: str) -> str:
    """Run an edgeml command and return what it printed.

    Raises:
        EdgemlError: Of the kind its exit code says, with its own words.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edgeml", *arguments], check=False, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip()[-OUTPUT_MAX:]
        lines = said.splitlines()
        message = next(
            (line.removeprefix("error: ") for line in lines if line.startswith("error: ")),
            said or "no output",
        )
        hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), "")
        kind = _KINDS.get(done.returncode, EdgemlError)
        raise kind(f"edgeml {' '.join(arguments[:2])}: {message}", hint=hint)
    return done.stdout
