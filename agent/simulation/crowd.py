"""Runs many simulated devices in one asyncio process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeml.errors import ConfigError

from ..config import AgentConfig, install_anchor
from ..config import load as load_config
from .device import SimulatedDevice
from .world import Shared, read_field


def run(kits: Sequence[Path], field_path: Path, directory: Path, scenario_path: Path | None) -> None:
    """Run simulated devices until interrupted.

    Args:
        kits: agent.toml files, one a device.
        field_path: .npz with `field_x`, `field_y`.
        directory: where what they share is kept.
        scenario_path: JSON file with a Scenario, read again when it changes.

    Raises:
        ConfigError: A file is wrong.
    """
    configs = [load_config(path) for path in kits]
    if not configs:
        raise ConfigError("no devices to simulate", hint="make some with edgeml fleet device add")
    lonely = [config.device for config in configs if config.broker is None or config.blobs is None]
    if lonely:
        raise ConfigError(f"{lonely[0]} has no broker or no blobs in its settings")
    install_anchor(kits[0], directory)
    shared = Shared(directory, read_field(field_path), scenario_path)
    shared.refresh_scenario()
    asyncio.run(_run(configs, shared))


async def _run(configs: Sequence[AgentConfig], shared: Shared) -> None:
    devices = [SimulatedDevice(config, shared) for config in configs]
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(device.run()) for device in devices]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
