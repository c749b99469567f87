"""A whole agent in this process, on a clock that the test sets, with a real fleet at the other end of a broker.

Its worker and its fetching children are processes; only the turns of its loop are the test's.
"""

import time

import numpy as np

from agent import config
from agent.ipc import TensorBytes
from agent.service import Service
from edgeml import topics
from edgeml.clock import SystemClock
from edgeml.ids import ReleaseId
from edgeml.telemetry import Event, Stream
from edgeml.tensors import DType

TURN_S = 0.2
DEADLINE_S = 180
STREAMS = (Stream.WINDOWS, Stream.EVENTS)


class SetClock(SystemClock):
    """Runs as the machine's, and is set ahead or back, both kinds of time alike."""

    def __init__(self, ahead_s=0.0):
        self.ahead_s = ahead_s

    def now_ms(self):
        return super().now_ms() + round(self.ahead_s * 1000)

    def monotonic_s(self):
        return super().monotonic_s() + self.ahead_s


class Life:
    """The agent, its fleet, and what the broker was told, in order and with the time."""

    def __init__(self, agent, broker, headquarters):
        self.agent, self.broker, self.headquarters = agent, broker, headquarters
        self.clock = headquarters.clock
        self.heard = []
        self.asked = self.noted = 0
        self.closed = False
        self.begin()

    def begin(self):
        self.service = Service(config.load(self.agent.settings), self.agent.settings, self.clock)
        self.service._begin()
        self.service._transport.start()
        self.buffer = self.service._buffer

    def restart(self):
        """Let the agent end in order, and begin anew."""
        self.service._end()
        self.service._lock.release()
        self.begin()

    @property
    def up(self):
        return self.service._link.up

    def listen(self):
        """Hear everything that the device says."""

        def hear(_client, _data, message):
            if not message.retain:
                self.heard.append((self.clock.monotonic_s(), topics.parse(message.topic), message.payload))

        self.broker.client.on_message = hear
        self.broker.client.subscribe("em/v1/default/d/cam-1/#", 1)

    def turn(self, seconds):
        self.clock.ahead_s += seconds
        self.service._turn()
        # The test's time flies: what was sent is to arrive in the turn in which it was.
        deadline = time.monotonic() + 1.0
        while self.up and self.service._transport.unconfirmed and time.monotonic() < deadline:
            time.sleep(0.001)
        self.headquarters.step()

    def ask(self, *releases):
        """Get an answer of one of these releases; of `sample@1.0.0`, if none is named."""
        tensors = [TensorBytes(DType.FLOAT32, (1, 4), np.float32([[1, 2, 3, 4]]).tobytes())]
        served = self.service.answering.infer("sample", tensors, f"r{self.asked}")
        assert served.manifest.release in (releases or ("sample@1.0.0",))
        self.asked += 1

    def until(self, condition, what, seconds=TURN_S):
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}"
            self.turn(seconds)

    def note(self):
        """Produce an event whose text there is once."""
        self.noted += 1
        event = Event(0, "note", self.clock.now_ms(), f"note {self.noted}", ReleaseId("sample@1.0.0"))
        self.buffer.append(event)

    def is_waiting(self):
        """Rows that the broker confirmed, and the fleet has not."""
        self.buffer.flush()
        losses = [self.buffer.loss(stream) for stream in STREAMS]
        return not self.service._transport.unconfirmed and any(one.sent > one.acknowledged for one in losses)

    def check_kept(self):
        """I3 at any instant: no row is gone from the device that the fleet has not stored."""
        acknowledged = {stream: self.buffer.loss(stream).acknowledged for stream in STREAMS}
        stored = self.headquarters.rows()
        for stream in STREAMS:
            assert len(set(stored[stream])) == len(stored[stream]) >= acknowledged[stream]

    def account(self):
        """Send what is left; then the fleet has exactly what the device counts as acknowledged, and that is everything."""
        self.until(
            lambda: not self.service._windows._open and not any(self.buffer.held(one) for one in STREAMS),
            "all rows to be acknowledged",
        )
        stored = self.headquarters.rows()
        for stream in STREAMS:
            loss = self.buffer.loss(stream)
            assert (loss.produced, loss.dropped) == (loss.acknowledged, 0)
            assert len(stored[stream]) == len(set(stored[stream])) == loss.acknowledged
            # The rows of each life are numbered from 1.
            for boot in {boot for boot, _ in stored[stream]}:
                seqs = sorted(seq for one, seq in stored[stream] if one == boot)
                assert seqs == list(range(1, len(seqs) + 1))
        assert self.headquarters.inferences() == self.asked
        assert self.headquarters.notes() == sorted(f"note {one + 1}" for one in range(self.noted))

    def entry(self, model="sample"):
        return self.service._device.entry(model)

    def close(self):
        if not self.closed:
            self.closed = True
            self.service._end()
            self.headquarters.close()
