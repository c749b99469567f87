"""Getting a bundle by delta over a real HTTP server that cuts, lies and forgets."""

import dataclasses
import random

import msgspec
import pytest

from edgeml import delta
from edgeml.errors import BudgetError, DigestMismatchError, PermanentTransferError, TransferError
from edgeml.ids import digest_of
from edgeml.rebuild import choose, obtain
from edgeml.source import HttpSource
from edgeml.trustfacts import SignedDelta
from edgeml.twin import FullDownload

from .test_download import publish, server

__all__ = ["server"]

CHANCE = random.Random(1)
BASE = CHANCE.randbytes(600_000)
TARGET = bytes((byte + (CHANCE.random() < 0.1)) % 256 for byte in BASE)


class Scene:
    """A device that has one bundle, and a server with another and the delta to it."""

    def __init__(self, directory, server):
        self.store = directory / "store"
        self.store.mkdir()
        self.server = server
        (directory / "base").write_bytes(BASE)
        (directory / "target").write_bytes(TARGET)
        self.delta = delta.make(directory / "base", directory / "target")
        target = publish(server, TARGET)
        self.signed = self.add(target, self.delta)
        self.install(BASE)

    def add(self, target, packed, base=BASE):
        """Sign one more delta, and serve it."""
        one = SignedDelta(digest_of(base), digest_of(packed), len(packed))
        self.server.blobs[one.sha256] = packed
        facts = msgspec.structs.replace(target.facts, deltas=(*target.facts.deltas, one))
        return dataclasses.replace(target, facts=facts)

    def install(self, data):
        (self.store / f"{digest_of(data)}.edgeml").write_bytes(data)

    def uninstall(self, data):
        (self.store / f"{digest_of(data)}.edgeml").unlink()

    def obtain(self, policy=FullDownload.ALWAYS, signed=None):
        return obtain(HttpSource(self.server.url), signed or self.signed, self.store, policy)

    def asked(self, data):
        return [name for name, _range, _etag in self.server.requests].count(digest_of(data))

    def names(self):
        return sorted(path.name for path in self.store.iterdir())

    def bundles(self):
        return sorted(f"{digest_of(data)}.edgeml" for data in (BASE, TARGET))


@pytest.fixture
def scene(tmp_path, server):
    return Scene(tmp_path, server)


@pytest.mark.parametrize("policy", FullDownload)
def test_a_device_that_has_the_base_receives_only_the_delta(scene, policy):
    fetched = scene.obtain(policy)
    assert fetched.path.read_bytes() == TARGET
    assert fetched.received_bytes == len(scene.delta) == sum(scene.server.sent.values())
    assert fetched.received_bytes < len(TARGET) / 4
    assert scene.names() == scene.bundles()


def test_what_is_there_already_is_not_fetched(scene):
    scene.install(TARGET)
    assert scene.obtain(FullDownload.NEVER).received_bytes == 0


def test_without_the_base_the_bundle_is_fetched_in_full(scene):
    scene.uninstall(BASE)
    fetched = scene.obtain()
    assert fetched.path.read_bytes() == TARGET
    assert fetched.received_bytes > len(TARGET)
    assert scene.asked(scene.delta) == 0


def test_without_the_base_and_without_full_downloads_it_is_refused_with_the_figures(scene):
    scene.uninstall(BASE)
    with pytest.raises(BudgetError, match=f"{len(TARGET)} bytes in full.*1 deltas, of which 0") as raised:
        scene.obtain(FullDownload.NEVER)
    assert (raised.value.observed, raised.value.budget) == (len(TARGET), 0)
    assert scene.server.requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1],
        lambda data: data + b"more",
        lambda _data: b"",
    ],
    ids=["flipped", "short", "long", "empty"],
)
def test_a_corrupted_delta_is_fetched_once_and_the_bundle_in_full(scene, wrong):
    served = wrong(scene.delta)
    scene.server.blobs[digest_of(scene.delta)] = served
    scene.server.cut_bytes = 300_000
    with pytest.raises(TransferError):
        scene.obtain()
    scene.server.cut_bytes = None
    fetched = scene.obtain()
    assert fetched.path.read_bytes() == TARGET
    assert scene.asked(scene.delta) == 1
    assert scene.names() == scene.bundles()


def test_the_bytes_of_a_corrupted_delta_count(scene):
    scene.server.blobs[digest_of(scene.delta)] = bytes([scene.delta[0] ^ 1]) + scene.delta[1:]
    fetched = scene.obtain()
    assert fetched.received_bytes == sum(scene.server.sent.values()) > len(TARGET) + len(scene.delta)


def test_a_corrupted_delta_is_a_refusal_where_full_downloads_are_forbidden(scene):
    scene.server.blobs[digest_of(scene.delta)] = scene.delta[:-1]
    for _attempt in range(2):
        with pytest.raises(BudgetError, match="of which 1 proved wrong"):
            scene.obtain(FullDownload.NEVER)
    assert scene.asked(scene.delta) == 1


def test_a_signed_delta_that_gives_something_else_falls_back_and_is_not_tried_again(scene):
    unlike = scene.delta[:-20] + bytes(20)
    target = dataclasses.replace(scene.signed, facts=msgspec.structs.replace(scene.signed.facts, deltas=()))
    target = scene.add(target, unlike)
    scene.server.cut_bytes = 300_000
    with pytest.raises(TransferError):
        scene.obtain(signed=target)
    scene.server.cut_bytes = None
    assert scene.obtain(signed=target).path.read_bytes() == TARGET
    assert scene.asked(unlike) == 1
    assert scene.names() == scene.bundles()


def test_a_damaged_base_falls_back(scene):
    (scene.store / f"{digest_of(BASE)}.edgeml").write_bytes(BASE[:-1] + b"?")
    assert scene.obtain().path.read_bytes() == TARGET


def test_a_delta_that_the_server_does_not_have_falls_back_or_is_asked_for_again(scene):
    del scene.server.blobs[digest_of(scene.delta)]
    with pytest.raises(PermanentTransferError):
        scene.obtain(FullDownload.NEVER)
    assert scene.obtain().path.read_bytes() == TARGET


def test_after_a_wrong_delta_the_next_one_is_tried(scene):
    shorter = scene.delta[:1000]
    target = scene.add(scene.signed, shorter)
    fetched = scene.obtain(FullDownload.NEVER, target)
    assert fetched.path.read_bytes() == TARGET
    assert fetched.received_bytes == len(shorter) + len(scene.delta)


def test_a_cut_delta_is_resumed(scene):
    scene.server.cut_bytes = len(scene.delta) // 2
    with pytest.raises(TransferError):
        scene.obtain()
    scene.server.cut_bytes = None
    fetched = scene.obtain()
    assert fetched.path.read_bytes() == TARGET
    assert sum(scene.server.sent.values()) == len(scene.delta)
    assert scene.server.requests[-1][1:] == (
        f"bytes={len(scene.delta) // 2}-",
        f'"{digest_of(scene.delta)}"',
    )


def test_a_peer_that_ignores_ranges_does_no_harm(scene):
    scene.server.cut_bytes = len(scene.delta) // 2
    with pytest.raises(TransferError):
        scene.obtain()
    scene.server.cut_bytes, scene.server.ignores_range = None, True
    assert scene.obtain(FullDownload.NEVER).path.read_bytes() == TARGET


@pytest.mark.parametrize("keep", [len, lambda data: len(data) + 7, lambda _data: 100])
def test_a_damaged_beginning_of_a_delta_costs_one_more_attempt(scene, keep):
    kept = scene.store / f"{digest_of(scene.delta)}.delta"
    kept.write_bytes(b"?" * keep(scene.delta))
    with pytest.raises(TransferError, match="damaged"):
        scene.obtain(FullDownload.NEVER)
    assert scene.obtain(FullDownload.NEVER).path.read_bytes() == TARGET


def test_a_bundle_that_is_nearly_there_is_finished_instead(scene):
    bare = dataclasses.replace(scene.signed, facts=msgspec.structs.replace(scene.signed.facts, deltas=()))
    scene.server.cut_bytes = len(TARGET) - 1000
    with pytest.raises(TransferError):
        scene.obtain(signed=bare)
    scene.server.cut_bytes = None
    assert scene.obtain().path.read_bytes() == TARGET
    assert scene.asked(scene.delta) == 0


def test_a_full_download_that_is_wrong_is_refused(scene):
    scene.uninstall(BASE)
    scene.server.flips = {0}
    with pytest.raises(DigestMismatchError):
        scene.obtain()


def test_what_is_no_digest_names_no_file(scene):
    stranger = scene.store.parent / "stranger.delta"
    stranger.write_bytes(b"kept")
    one = SignedDelta(digest_of(BASE), "../stranger", 10)
    facts = msgspec.structs.replace(scene.signed.facts, deltas=(one,))
    assert scene.obtain(signed=dataclasses.replace(scene.signed, facts=facts)).path.read_bytes() == TARGET
    assert stranger.read_bytes() == b"kept"


def test_the_smallest_delta_that_fits_is_chosen(scene):
    a, b, c = (
        SignedDelta(letter * 64, letter * 64, size) for letter, size in (("a", 30), ("b", 20), ("c", 10))
    )
    facts = msgspec.structs.replace(scene.signed.facts, deltas=(a, b, c))
    target = dataclasses.replace(scene.signed, facts=facts)
    every = {one.base_sha256 for one in (a, b, c)}
    assert choose(target, every, set(), 100) == c
    assert choose(target, every, {c.sha256}, 100) == b
    assert choose(target, every - {c.base_sha256}, set(), 21) == b
    assert choose(target, every, set(), 10) is None
    assert choose(target, set(), set(), 100) is None


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("place", ["edgeml.delta.os.fsync", "pathlib.Path.replace", "pathlib.Path.unlink"])
def test_an_end_at_any_point_leaves_no_bundle_or_the_right_one(scene, place):
    """The file is written, synced, renamed, and then what is left over is removed."""
    with pytest.MonkeyPatch.context() as patch:

        def killed(*_arguments, **_more):
            raise Killed

        patch.setattr(place, killed)
        # Nothing runs after a kill, so the half-written file stays.
        patch.setattr("pathlib.Path.unlink", killed)
        with pytest.raises(Killed):
            scene.obtain(FullDownload.NEVER)
    done = scene.store / f"{digest_of(TARGET)}.edgeml"
    assert not done.exists() or done.read_bytes() == TARGET
    assert done.exists() == (place == "pathlib.Path.unlink")
    assert scene.obtain(FullDownload.NEVER).path.read_bytes() == TARGET
    assert scene.asked(scene.delta) == 1, "what was fetched is used"
    assert scene.names() == scene.bundles()
