"""A cache on the local network, which is trusted as little as any server: whatever it does, the release arrives."""

import msgspec
import pytest

from edgeml.twin import Outcome

from .invariants import check
from .mirror import Mirror


@pytest.fixture
def cache(signer, unit):
    made = Mirror(signer)
    blobs = msgspec.structs.replace(unit.config.blobs, cache_url=made.url)
    unit.config = msgspec.structs.replace(unit.config, blobs=blobs)
    unit.installer._fetching._config = unit.config
    yield made
    made.close()


def blobs_of(mirror):
    return [asked.name for asked in mirror.asked if asked.folder == "blobs"]


def test_bundles_come_from_it_and_metadata_from_the_server(unit, mirror, cache, signer, versions):
    assert unit.install(signer.release(versions[2], 2)).outcome is Outcome.COMMITTED
    assert blobs_of(mirror) == []
    assert len(blobs_of(cache)) >= 2, "the bundle and its chunk list"
    assert {asked.folder for asked in cache.asked} == {"blobs"}
    check(unit.storage)


def absent(_asked, reply):
    reply.status, reply.body, reply.headers = 404, b"no", {}


def lying(_asked, reply):
    reply.body = bytes([reply.body[0] ^ 1]) + reply.body[1:]


def cutting(_asked, reply):
    reply.cut_bytes = len(reply.body) // 2


def broken(_asked, reply):
    reply.status, reply.body, reply.headers = 500, b"", {}


@pytest.mark.parametrize("habit", [absent, lying, cutting, broken])
def test_what_it_has_not_or_has_wrong_comes_from_the_server_in_the_same_attempt(
    unit, mirror, cache, signer, versions, habit
):
    cache.habit = habit
    wanted = signer.release(versions[2], 2)
    assert unit.install(wanted).outcome is Outcome.COMMITTED
    assert unit.serves() == "sample@2.0.0"
    assert wanted.digest in blobs_of(mirror)
    assert len(unit.waits) == 1, "one attempt"
    check(unit.storage)


def test_one_that_is_switched_off_costs_nothing_but_a_refused_connection(
    unit, mirror, cache, signer, versions
):
    cache.close()
    assert unit.install(signer.release(versions[2], 2)).outcome is Outcome.COMMITTED
    assert len(blobs_of(mirror)) >= 2


def test_it_is_told_no_login(unit, mirror, cache, signer, versions):
    unit.install(signer.release(versions[2], 2))
    assert {asked.login for asked in cache.asked} == {None}
    assert None not in {asked.login for asked in mirror.asked}
