"""The endpoint's sleep: it ends when it is told to, not when it next looks, and its answers carry the date of now."""

import asyncio
import threading
import time
from email.utils import parsedate_to_datetime

import httpx
import pytest
import uvicorn

from agent import http_host
from agent.http_host import HttpHost
from agent.listener import Listener, Port

from ..waiting import PATIENCE_S

LONG_S = 300.0


async def hello(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def tick_s():
    return LONG_S


@pytest.fixture
def host(monkeypatch, tick_s):
    monkeypatch.setattr(http_host, "TICK_S", tick_s)
    return HttpHost(uvicorn.Config(hello, log_config=None, lifespan="off"))


@pytest.fixture
def ticks(monkeypatch, host):
    """What uvicorn was told at each look, from the first one on."""
    seen = []
    real = host.on_tick

    async def counted(counter):
        seen.append(counter)
        return await real(counter)

    monkeypatch.setattr(host, "on_tick", counted)
    return seen


@pytest.fixture
def served(host, ticks):
    listener = Listener(Port("127.0.0.1", 0))
    thread = threading.Thread(target=host.run, kwargs={"sockets": [listener.socket]}, daemon=True)
    thread.start()
    yield listener.url
    host.end()
    thread.join(60)
    listener.close()
    assert not thread.is_alive()


def test_it_sleeps_while_it_serves_and_ends_at_once(served, ticks):
    """That it has ended within ten seconds of being told, the fixture asserts."""
    for _ in range(3):
        assert httpx.get(served).text == "hello"
    time.sleep(0.5)  # uvicorn's own loop would have looked five times meanwhile
    assert ticks == [0]


def test_one_that_is_told_to_end_before_it_begins_does_not_begin(host):
    host.end()
    asyncio.run(asyncio.wait_for(host.main_loop(), 10))


def test_telling_it_again_when_it_has_ended_changes_nothing(host):
    host.end()
    asyncio.run(asyncio.wait_for(host.main_loop(), 10))
    host.end()


@pytest.mark.parametrize("tick_s", [0.02])
def test_answers_carry_the_date_of_now(served):
    dates = set()
    until_s = time.monotonic() + PATIENCE_S
    while len(dates) < 3 and time.monotonic() < until_s:
        at = parsedate_to_datetime(httpx.get(served).headers["date"])
        assert abs(at.timestamp() - time.time()) < 10
        dates.add(at)
        time.sleep(0.2)
    assert len(dates) == 3
