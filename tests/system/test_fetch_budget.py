"""The budget of the network and of the store, with the real fetching child and a real server of signed releases, by HTTP and by MQTT."""

import contextlib
import functools
import http.server
import random
import threading
import time
from pathlib import Path

import msgspec
import pytest

from agent.config import UpdateConfig, load
from agent.executor import Setback
from agent.fetching import Fetching
from agent.ration import Purpose
from agent.schedule import Metered
from agent.timetable import Timetable
from agent.traffic import Traffic
from edgeml.bundle import Bundle, write_bundle
from edgeml.errors import BudgetError, PostponedError
from edgeml.ids import digest_of_file
from edgeml.manifest import REPORT
from edgeml.testing import FakeClock, sample_bundle
from edgeml.twin import Desired
from fleet import founding
from fleet.repository import Repository

from .test_processes import House, house, wait_for

__all__ = ["House", "house"]
pytestmark = pytest.mark.processes


class Scene:
    """A device that fetches, on a clock that a test moves, from a fleet that serves."""

    def __init__(self, house, update=None, **budget):
        config = load(house.settings)
        self.config = msgspec.structs.replace(
            config,
            budget=msgspec.structs.replace(config.budget, **budget),
            update=update or UpdateConfig(),
        )
        self.storage = Path(config.storage)
        (self.storage / "trust").mkdir(parents=True, exist_ok=True)
        root = house.home.repository / "metadata" / "1.root.json"
        (self.storage / "trust" / "root.json").write_bytes(root.read_bytes())
        self.store = self.storage / "store"
        self.clock = FakeClock(time.time_ns() // 1_000_000)
        [self.target] = Repository(house.home.repository).releases()
        self.desired = Desired(
            generation=1, deployment="d", release=self.target.facts.release, target=self.target.path,
            digest=self.target.digest,
        )  # fmt: skip
        self.restart()

    def restart(self):
        self.traffic = Traffic(self.storage, self.config.budget.network_bytes_per_day, self.clock)
        timetable = Timetable(self.config.update, self.clock)
        self.fetching = Fetching(self.config, self.store, self.clock, timetable, self.traffic)

    def fetch(self):
        delivery = self.fetching.fetch(self.desired, "")
        if isinstance(delivery, Setback):
            raise delivery.error
        return delivery


@pytest.fixture(params=["http", "mqtt"])
def served(house, request):
    """A fleet that serves a bundle of 600 kB: the sample with a report of noise; and which way a device takes."""
    small, large = house.directory / "small.edgeml", house.directory / "large.edgeml"
    sample_bundle(small, "1.0.0")
    with Bundle(small) as bundle:
        members = {entry.name: bundle.read(entry.name) for entry in bundle.manifest.files}
        write_bundle(large, bundle.manifest, members | {REPORT: random.Random(1).randbytes(600_000)})
    founding.publish(house.home, house.store, [large], house.home.keys)
    if request.param == "mqtt":
        text = house.settings.read_text()
        url = f'url = "http://127.0.0.1:{house.config.http.port}"'
        assert url in text
        house.settings.write_text(text.replace(url, 'over = "mqtt"'))
    house.serve()
    wait_for(lambda: "ready; stop" in house.words(), "the fleet to serve")
    return house


def test_a_fetch_stops_at_the_days_budget_and_goes_on_the_next_day_and_no_sooner(served):
    free = Scene(served)
    free.fetch()
    whole = free.traffic.spent_bytes
    length = free.target.length_bytes
    assert length < whole < length + 60_000
    for path in free.store.iterdir():
        path.unlink()
    # Metadata are there already. Of a day's budget fetches get less than half, for telemetry is kept its part.
    scene = Scene(served, network_bytes_per_day=length)
    days, asked = [], 0
    while True:
        asked += 1
        assert asked < 12
        try:
            delivery = scene.fetch()
            break
        except PostponedError as error:
            postponed = error
        days.append(scene.traffic.spent_bytes)
        assert scene.traffic.room_bytes(Purpose.DOWNLOADS) == 0
        assert scene.traffic.room_bytes(Purpose.WINDOWS) > 0
        assert "used up" in postponed.message
        assert 0 < postponed.wait_s <= 86_400
        # Neither asking again nor a restart gives more, and nothing is taken.
        scene.restart()
        with pytest.raises(PostponedError):
            scene.fetch()
        assert scene.traffic.spent_bytes == days[-1]
        scene.clock.advance(postponed.wait_s + 1)
    assert delivery.target == scene.target
    assert digest_of_file(scene.store / f"{scene.target.digest}.edgeml") == scene.target.digest
    assert 2 <= len(days) <= 8
    assert max(days) <= length


def test_a_bundle_for_which_the_store_has_no_room_is_refused_before_a_byte_of_it_is_fetched(served):
    scene = Scene(served, storage_bytes=600_000)
    scene.store.mkdir(parents=True)
    (scene.store / f"{'0' * 64}.edgeml").write_bytes(bytes(590_000))
    with pytest.raises(BudgetError, match="may store 600000 in all and has 590000 already") as caught:
        scene.fetch()
    error = caught.value
    assert (error.budget, error.observed, error.unit) == (10_000, scene.target.length_bytes, "bytes")
    assert [path.name for path in scene.store.iterdir()] == [f"{'0' * 64}.edgeml"]


def test_a_rate_holds_for_all_that_is_fetched(served):
    """Not timed: the child is slower than the rate allows, whatever else goes on."""
    scene = Scene(served, network_bytes_per_s=600_000)
    began_s = time.monotonic()
    scene.fetch()
    rate = scene.traffic.spent_bytes / (time.monotonic() - began_s)
    assert rate <= 600_000 / scene.config.update.parallel_downloads


def test_outside_its_hours_and_over_a_metered_link_nothing_is_asked_for(served, tmp_path):
    metered = tmp_path / "metered"
    hour = (time.localtime().tm_hour + 2) % 24
    closed = UpdateConfig(download_window=f"{hour:02}:00-{(hour + 1) % 24:02}:00")
    with pytest.raises(PostponedError, match="the download window opens at"):
        Scene(served, closed).fetch()
    scene = Scene(served, UpdateConfig(metered=Metered.NEVER, metered_file=str(metered)))
    metered.touch()
    with pytest.raises(PostponedError, match="the link is metered"):
        scene.fetch()
    assert scene.traffic.spent_bytes == 0
    metered.unlink()
    assert scene.fetch().target == scene.target


class Cache(http.server.SimpleHTTPRequestHandler):
    """A cache nearby, as anybody would make one; `asked` are the paths, `lies` what it does to bodies."""

    asked: list
    lies = False

    def do_GET(self):
        self.asked.append(self.path)
        if not self.lies:
            super().do_GET()
            return
        data = bytearray(Path(self.translate_path(self.path)).read_bytes())
        data[-1] ^= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def cache_of(repository, *, lies):
    kind = type("Habit", (Cache,), {"asked": [], "lies": lies})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(kind, directory=str(repository))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", kind.asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("lies", [False, True])
def test_a_cache_nearby_is_asked_first_and_only_what_the_fleet_sends_is_counted(served, lies):
    with cache_of(served.home.repository, lies=lies) as (url, asked):
        scene = Scene(served)
        blobs = msgspec.structs.replace(scene.config.blobs, cache_url=url)
        scene.config = msgspec.structs.replace(scene.config, blobs=blobs)
        scene.restart()
        scene.fetch()
    assert asked
    assert all(path.startswith("/blobs/sha256/") for path in asked)
    if lies:
        assert scene.traffic.spent_bytes > scene.target.length_bytes
    else:
        assert 0 < scene.traffic.spent_bytes < 60_000, "metadata"
