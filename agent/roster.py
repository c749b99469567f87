"""The roster: which models this device serves, each from a seat of its own.

Decides nothing about a model; a crash, a swap or a slow answer of one is no business of the others. What happens in a
seat is `serving`'s.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from edgeml.ids import ModelName

from .serving import Loader, Serving
from .supervisor import Worker


class Roster:
    """The seats of all models. Thread-safe; each seat's `swap` is for one thread at a time."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._lock = threading.Lock()
        self._seats: dict[ModelName, Serving] = {}

    @property
    def models(self) -> tuple[ModelName, ...]:
        """The models that are served now, even while a worker is about to be restarted."""
        return tuple(sorted(model for model, seat in self._items() if seat.active is not None))

    @property
    def workers(self) -> dict[ModelName, Worker]:
        """The worker of each model that is served now."""
        active = ((model, seat.active) for model, seat in self._items())
        return {model: worker for model, worker in active if worker is not None}

    @property
    def seats(self) -> dict[ModelName, Serving]:
        """Every seat there ever was."""
        return dict(self._items())

    def find(self, model: str) -> Serving | None:
        """Find a model's seat; None if it never had one."""
        return self._seats.get(ModelName(model))

    def seat(self, model: ModelName) -> Serving:
        """Find a model's seat, or make one."""
        with self._lock:
            return self._seats.setdefault(model, Serving(self._loader))

    def close(self) -> None:
        """Serve nothing any more and stop all workers, side by side: together they have as long as one."""
        seats = self._items()
        if not seats:
            return
        with ThreadPoolExecutor(len(seats), "closing") as pool:
            for done in [pool.submit(seat.close) for _, seat in seats]:
                done.result()

    def _items(self) -> list[tuple[ModelName, Serving]]:
        with self._lock:
            return list(self._seats.items())
