"""Plays the world in front of the demo's real devices: images in, labels a while later.

Each camera posts images to its device's local HTTP endpoint and, some seconds afterwards, what they really showed.
A device that is away is simply asked again; a camera may be turned by 90 degrees while it runs.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Scene:
    """What cameras see: float32 images [n, 1, h, w] and what they show, int [n]."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a camera asks, and how labels come back."""

    per_s: float = 20.0
    label_delay_s: float = 2.0
    labelled_fraction: float = 0.5


class Camera:
    """One camera at one device, in a thread of its own."""

    def __init__(self, name: str, port: int, model: str, scene: Scene, pace: Pace) -> None:
        self.name = name
        self.rotated = threading.Event()
        self.answered = 0
        self.failed = 0
        self.latencies_ms: deque[float] = deque(maxlen=2000)
        self._port = port
        self._model = model
        self._scene = scene
        self._pace = pace
        self._random = random.Random(name)
        self._stop = threading.Event()
        self._name = ""
        self._owed: deque[tuple[float, str, int]] = deque()
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, name=f"camera-{name}", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if now < due:
                self._stop.wait(due - now)
                continue
            due = max(due + 1 / self._pace.per_s, now - 1.0)
            try:
                self._look(now)
                while self._owed and self._owed[0][0] <= now:
                    _, request, label = self._owed.popleft()
                    self._post(f"/v2/models/{self._model}/feedback", {"id": request, "label": label})
            except (OSError, http.client.HTTPException, _NotServingError):
                # The device restarts, or has no model yet; a real camera goes on looking, too.
                self.failed += 1
                self._close()
                self._stop.wait(RETRY_S)

    def _look(self, now: float) -> None:
        pick = self._random.randrange(len(self._scene.images))
        image = self._scene.images[pick : pick + 1]
        if self.rotated.is_set():
            image = np.ascontiguousarray(np.rot90(image, axes=(-2, -1)))
        begun = time.perf_counter()
        answer = self._post(
            f"/v2/models/{self._model}/infer",
            {
                "inputs": [
                    {
                        "name": self._input_name(),
                        "shape": list(image.shape),
                        "datatype": "FP32",
                        "data": image.ravel().tolist(),
                    }
                ]
            },
        )
        self.latencies_ms.append((time.perf_counter() - begun) * 1000)
        self.answered += 1
        request = str(answer["id"])
        if self._random.random() < self._pace.labelled_fraction:
            self._owed.append((now + self._pace.label_delay_s, request, int(self._scene.labels[pick])))

    def _input_name(self) -> str:
        """Ask the device what its model calls its input; another release may call it otherwise."""
        if self._connection is None or not self._name:
            self._connect().request("GET", f"/v2/models/{self._model}")
            metadata = self._read()
            inputs = metadata["inputs"]
            assert isinstance(inputs, list)
            self._name = str(inputs[0]["name"])
        return self._name

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self._connect().request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return self._read()

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        return self._connection

    def _read(self) -> dict[str, Any]:
        response = self._connect().getresponse()
        data = response.read()
        if response.status >= 400:
            raise _NotServingError(f"{response.status}: {data[:200]!r}")
        result: dict[str, Any] = json.loads(data) if data else {}
        return result

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _NotServingError(Exception):
    """The device answers, and says that it cannot."""
