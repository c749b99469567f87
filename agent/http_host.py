"""Runs the endpoint's application: uvicorn, which sleeps while nobody asks.

Decides how often a device without requests wakes up for its endpoint: once a second, for the date that answers carry.
uvicorn by itself looks ten times a second whether it should end, which took a device with nothing to do as much
processor time as all the rest of its agent (`benchmarks/agent.py`). Imported with the endpoint only.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import uvicorn

TICK_S: Final = 1.0


class HttpHost(uvicorn.Server):
    """uvicorn's server, told to end from another thread."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()

    async def main_loop(self) -> None:
        """Serve until `end`; uvicorn calls it. Were it to call something else, its own loop would run: no harm."""
        self._loop = asyncio.get_running_loop()
        # Its tick counts tenths of a second and does what is due once a second when they are a multiple of ten.
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), TICK_S)

    def end(self) -> None:
        """Finish the requests under way and end; from any thread, at any time."""
        # In this order: a loop that is not there yet looks before it waits.
        self.should_exit = True
        if self._loop is not None:
            # It is closed if it has ended already.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)
