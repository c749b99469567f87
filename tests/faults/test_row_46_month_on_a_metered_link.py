"""Row 46: a month on a metered link. What a proxy counts between the device and the world stays within the budget of each day.

A real mosquitto with mutual TLS, a real server of bundles over TLS and the real fetching child; only the clock is told
the time. Cuts, refusals, a link that breaks whenever it is made, a fleet that does not answer, and kills are included.
"""

import random
import ssl
import time

import pytest

from agent.allowance import DAY_MS, DAY_S
from agent.config import AgentConfig, BlobsConfig, BrokerConfig, BudgetConfig, TlsConfig
from agent.executor import Setback
from agent.ration import keepalive_s, last_bytes, reserve_bytes
from agent.traffic import WRITES_A_DAY
from edgeml import atomic, mqtt
from edgeml.errors import PostponedError
from edgeml.ids import digest_of
from edgeml.telemetry import Stream
from edgeml.testing import FakeClock
from edgeml.twin import Outcome

from .counter import Counter
from .month import Control, Life, Rows, wait_until
from .points import SOAK
from .secure import SecureBroker

BUDGET = 1 << 19
DAYS = {"plain": 8, "tls": 31 if SOAK else 16}
"""`make soak` has the whole month."""
PINGS = 4
STEP_S = PINGS * keepalive_s(BUDGET)
FLAPPING, SILENT, REFUSED = {2, 20}, {9}, {4, 13}
KILLED = {1, 11, 17, 24}
FETCHED_FROM = 3
pytestmark = [pytest.mark.processes, pytest.mark.broker]


@pytest.fixture
def quick_reconnects(monkeypatch):
    """A day takes seconds here, so a pause of seconds would be hours."""
    monkeypatch.setattr(mqtt, "RECONNECT_MIN_S", 0.01)
    monkeypatch.setattr(mqtt, "RECONNECT_FIRST_S", 0.02)
    monkeypatch.setattr(mqtt, "RECONNECT_MAX_S", 0.05)


class Scene:
    """A device behind a proxy that counts, and what lies beyond."""

    def __init__(self, directory, broker, mirror, signer, *, tls):
        self.broker, self.signer, self.mirror = broker, signer, mirror
        self.clock = FakeClock((time.time_ns() // 1_000_000 // DAY_MS + 1) * DAY_MS)
        self.chance = random.Random(46)
        broker_port, mirror_port = broker.tls_port if tls else broker.port, mirror.server_address[1]
        self.proxy = Counter([broker_port, mirror_port])
        token = directory / "token"
        token.write_text("secret")
        token.chmod(0o600)
        self.storage = directory / "cam-1"
        (self.storage / "trust").mkdir(parents=True)
        (self.storage / "trust" / "root.json").write_bytes(signer.anchor)
        files = TlsConfig(str(broker.files.authority), str(broker.files.identity)) if tls else None
        self.config = AgentConfig(
            device="cam-1",
            profile="generic-x86-64",
            storage=str(self.storage),
            broker=BrokerConfig("127.0.0.1", self.proxy.ports[broker_port], "" if tls else str(token)),
            blobs=BlobsConfig(f"http{'s' if tls else ''}://127.0.0.1:{self.proxy.ports[mirror_port]}"),
            tls=files,
            budget=BudgetConfig(network_bytes_per_day=BUDGET),
        )
        self.control = Control(broker.port, self.clock)
        self.rows = Rows()
        self.life = Life(self.config, self.storage, self.clock)
        self.spent = []
        """What the proxy saw each day, and what the device counted."""
        self._before_bytes = 0

    def live_a_day(self, day):
        """From one midnight to the next."""
        flaps = day in FLAPPING
        self.proxy.refuses = day in REFUSED
        if day in REFUSED:
            self.proxy.cut()
        self.control.acknowledges = day not in SILENT
        generation = self.control.want()
        left_s = DAY_S
        while left_s > 2 * STEP_S:
            self.clock.advance(STEP_S)
            left_s -= STEP_S
            at_ms = self.clock.now_ms()
            for _ in range(20):
                self.life.buffer.append(self.rows.window(at_ms))
            self.life.buffer.append(self.rows.event(at_ms))
            for _ in range(self.chance.randrange(4)):
                self.life.buffer.append(self.rows.sample(at_ms))
            self.life.turn()
            for _ in range(PINGS):
                self.life.show_that_it_is_alive()
            if flaps:
                self.live_for_a_moment()
                self.proxy.cut()
            elif self.chance.random() < 0.08:
                self.proxy.cut_after_bytes = self.chance.randrange(40_000)
            self.catch_up()
        self.proxy.cut_after_bytes = None
        if day in KILLED:
            self.life.kill()
            self.life = Life(self.config, self.storage, self.clock)
        self.end_of_day(left_s)
        return generation

    def live_for_a_moment(self):
        """Between two cuts: long enough for some of what is to be said, by chance."""
        transport = self.life.transport
        wait_until(lambda: transport.connected or transport._inner is None, 0.3)
        self.life.turn()
        time.sleep(self.chance.random() * 0.05)
        self.life.turn()

    def catch_up(self):
        """Let processes do in real time what a step of the told time is more than enough for."""
        transport = self.life.transport
        wait_until(lambda: transport.connected or transport._inner is None, 0.05)
        wait_until(lambda: not transport.connected or transport.unconfirmed == 0, 0.2)

        def is_acknowledged():
            self.life.hear()
            return not (transport.connected and self.life.uplink._flights)

        wait_until(is_acknowledged, 0.05)

    def end_of_day(self, left_s):
        quiet = [-1]
        for _ in range(20):
            time.sleep(0.01)
            self.life.hear()
            if quiet[-1] == self.proxy.count_bytes:
                break
            quiet.append(self.proxy.count_bytes)
        self.spent.append((self.proxy.count_bytes - self._before_bytes, self.life.traffic.spent_bytes))
        self._before_bytes = self.proxy.count_bytes
        self.clock.advance(left_s)

    def account(self):
        """Check that the counts add up, and that what was acknowledged is stored, once."""
        for stream in Stream:
            loss, held = self.life.buffer.loss(stream), self.life.buffer.held(stream)
            assert loss.produced == loss.acknowledged + loss.dropped + held
            assert loss.dropped == loss.reasons.total == 0
            stored = len(self.control.stored[stream])
            assert loss.acknowledged <= stored <= loss.acknowledged + held
            assert stored <= loss.sent

    def close(self):
        self.life.end()
        self.control.close()
        self.proxy.close()


@pytest.fixture
def broker(tmp_path):
    made = SecureBroker(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["plain", "tls"])
def scene(request, tmp_path, broker, mirror, signer, quick_reconnects):
    tls = request.param == "tls"
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        context.load_verify_locations(broker.files.authority)
        context.verify_mode = ssl.CERT_REQUIRED
        mirror.socket = context.wrap_socket(mirror.socket, server_side=True)
    made = Scene(tmp_path, broker, mirror, signer, tls=tls)
    yield made
    made.close()


def test_a_month_of_everything_stays_within_each_days_budget_and_state_gets_through(
    scene, signer, large, monkeypatch
):
    writes, real = [], atomic.write_bytes
    monkeypatch.setattr(
        atomic,
        "write_bytes",
        lambda path, *given, **more: (writes.append(path.name), real(path, *given, **more)),
    )
    days = DAYS["tls" if scene.config.tls else "plain"]
    wanted = signer.release(large)
    bundle = scene.storage / "store" / f"{digest_of(large)}.edgeml"
    generations, postponed, held_back = [], 0, 0
    for day in range(days):
        if day >= FETCHED_FROM and not bundle.exists():
            signer.now_ms = scene.clock.now_ms()
            signer.publish()
            found = scene.life.fetching.fetch(wanted, "")
            postponed += isinstance(found, Setback) and isinstance(found.error, PostponedError)
        generations.append(scene.live_a_day(day))
        held_back += scene.life.uplink.held_back(Stream.SAMPLES) > 0
        scene.account()
    seen, counted = zip(*scene.spent, strict=True)
    assert max(seen) <= BUDGET
    assert max(counted) <= BUDGET
    # The kernel's count has the headers too; nothing that the proxy saw is missing in it. What is on its way at midnight
    # is seen on one day and counted on the next.
    assert sum(counted) >= sum(seen)
    assert [
        (day, theirs, ours) for day, (theirs, ours) in enumerate(scene.spent) if ours < 0.9 * theirs
    ] == []
    # There was always more to say than fits, and what fits was said.
    busy = [one for day, one in enumerate(seen) if day > 1 and day not in FLAPPING | SILENT | REFUSED]
    assert min(busy) > 0.6 * (BUDGET - reserve_bytes(BUDGET))
    assert held_back > days / 2
    assert scene.life.buffer.held(Stream.EVENTS) < 20, "what matters most waits for nothing"
    # What was wanted each day was answered on that day, unless nothing could get through at all.
    answered = {
        (report.generation, at_ms // DAY_MS)
        for at_ms, report in scene.control.reports
        if report.outcome is Outcome.FAILED
    }
    first = scene.control.reports[0][0] // DAY_MS
    expected = {(one, first + day) for day, one in enumerate(generations) if day not in REFUSED}
    assert expected <= answered
    assert postponed >= 2
    kept = sum(path.stat().st_size for path in bundle.parent.iterdir())
    assert kept > BUDGET / 8, "a little of the bundle came every day"
    if days > 30:
        assert digest_of(bundle.read_bytes()) == wanted.digest
    assert writes.count("traffic.json") <= days * (WRITES_A_DAY + 8)
    stored = sum(map(len, scene.control.stored.values()))
    assert scene.control.twice < stored / 5, "little is sent again in vain"


def test_a_link_that_breaks_all_day_leaves_state_its_turn_until_the_evening(scene):
    """Connections are spread over the day once the reserve is touched, and none is made that could not be paid."""
    scene.life.traffic.add(BUDGET - reserve_bytes(BUDGET))
    times = []
    left_s = DAY_S
    while left_s > 2 * STEP_S:
        scene.clock.advance(STEP_S)
        left_s -= STEP_S
        before = scene.proxy.connections
        scene.life.turn()
        wait_until(lambda: scene.life.transport.connected, 0.05)
        scene.life.turn()
        if scene.proxy.connections > before:
            times.append(scene.clock.now_ms() % DAY_MS)
        scene.proxy.cut()
        scene.catch_up()
    scene.end_of_day(left_s)
    [(seen, counted)] = scene.spent
    assert seen <= reserve_bytes(BUDGET)
    assert counted <= BUDGET
    quarters = {one * 4 // DAY_MS for one in times}
    assert quarters == {0, 1, 2, 3}
    assert BUDGET - counted >= last_bytes(BUDGET) // 2
