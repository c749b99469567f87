"""Which deltas are published, and that a device gets a bundle by one."""

import random

import msgspec
import pytest

from edgeml.errors import BudgetError
from edgeml.ids import digest_of, digest_of_file
from edgeml.rebuild import obtain
from edgeml.source import DirectorySource
from edgeml.trustfacts import SignedFacts
from edgeml.twin import FullDownload
from fleet import deltas

WEIGHTS = random.Random(1).randbytes(500)


def moved(steps):
    """Weights, a hundredth of them moved."""
    data = bytearray(WEIGHTS)
    for index in range(steps):
        data[index] = (data[index] + 1) % 256
    return bytes(data)


def facts(scene, path):
    return scene.device().target(path).facts


def test_the_first_release_has_no_delta_and_its_metadata_do_not_speak_of_any(bundle, scene):
    scene.publish(bundle(scene.directory))
    assert facts(scene, "digits/1.0.0/int8.edgeml").deltas == ()
    assert b"deltas" not in (scene.repository.directory / "metadata" / "2.targets.json").read_bytes()


def test_metadata_that_speak_of_deltas_are_read_and_those_of_before_too(bundle, scene):
    (published,) = scene.publish(bundle(scene.directory))
    old = msgspec.to_builtins(published.target.facts)
    assert "deltas" not in old
    assert msgspec.convert(old, SignedFacts) == published.target.facts
    digest = "a" * 64
    new = old | {"deltas": [{"base_sha256": digest, "sha256": digest, "length_bytes": 5}]}
    assert msgspec.convert(new, SignedFacts).deltas[0].length_bytes == 5


def test_a_release_gets_deltas_from_the_three_newest_before_it(bundle, scene):
    paths = [bundle(scene.directory, f"{number}.0.0", content=moved(number)) for number in range(1, 6)]
    for path in paths:
        scene.publish(path)
    found = facts(scene, "digits/5.0.0/int8.edgeml").deltas
    assert [one.base_sha256 for one in found] == [digest_of_file(path) for path in reversed(paths[1:4])]
    for one in found:
        blob = scene.repository.blob_path(one.sha256)
        data = blob.read_bytes()
        assert (digest_of(data), len(data)) == (one.sha256, one.length_bytes)
        assert one.length_bytes < paths[4].stat().st_size * deltas.WORTH_FRACTION
        assert blob.stat().st_mode & 0o777 == 0o644


def test_neither_another_variant_nor_another_model_nor_the_same_release_is_a_base(bundle, scene):
    scene.publish(
        bundle(scene.directory, "1.0.0", "fp32"),
        bundle(scene.directory, "1.0.0", model="faces"),
        bundle(scene.directory, "2.0.0", "fp32"),
    )
    scene.publish(bundle(scene.directory, "2.0.0"))
    assert facts(scene, "digits/2.0.0/int8.edgeml").deltas == ()


def test_a_delta_of_half_the_bundle_or_more_is_not_kept(bundle, scene):
    blobs = scene.repository.blob_path("x").parent
    # Content is repeated a hundred times in these bundles, so that even unlike weights shrink: the limit is moved.
    first, other = (random.Random(seed).randbytes(10_000) for seed in (2, 3))
    scene.publish(bundle(scene.directory, "1.0.0", content=first))
    before = len(list(blobs.iterdir()))
    path = bundle(scene.directory, "2.0.0", content=other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltas, "WORTH_FRACTION", 10_000 / path.stat().st_size)
        scene.publish(path)
    assert facts(scene, "digits/2.0.0/int8.edgeml").deltas == ()
    assert len(list(blobs.iterdir())) == before + 2


def test_a_bundle_that_is_too_long_to_compare_gets_none(bundle, scene, monkeypatch):
    scene.publish(bundle(scene.directory, "1.0.0", content=moved(0)))
    path = bundle(scene.directory, "2.0.0", content=moved(5))
    monkeypatch.setattr(deltas, "TARGET_BYTES_MAX", path.stat().st_size - 1)
    scene.publish(path)
    assert facts(scene, "digits/2.0.0/int8.edgeml").deltas == ()


def test_publishing_again_makes_nothing_new(bundle, scene):
    paths = [bundle(scene.directory, f"{number}.0.0", content=moved(number)) for number in (1, 2)]
    for path in (*paths, paths[1]):
        scene.publish(path)
    assert len(facts(scene, "digits/2.0.0/int8.edgeml").deltas) == 1


def test_a_base_that_is_gone_from_the_repository_costs_only_the_delta(bundle, scene):
    old, new = (bundle(scene.directory, f"{number}.0.0", content=moved(number)) for number in (1, 2))
    scene.publish(old)
    scene.repository.blob_path(digest_of_file(old)).unlink()
    scene.publish(new)
    assert facts(scene, "digits/2.0.0/int8.edgeml").deltas == ()


def test_a_device_gets_the_new_release_by_delta_and_one_without_the_old_is_refused(bundle, scene):
    old, new = (bundle(scene.directory, f"{number}.0.0", content=moved(number)) for number in (1, 2))
    scene.publish(old)
    scene.publish(new)
    source, store = DirectorySource(scene.repository.directory), scene.directory / "store"
    trust = scene.device()
    target = trust.target("digits/2.0.0/int8.edgeml")
    with pytest.raises(BudgetError):
        obtain(source, target, store, FullDownload.NEVER)
    obtain(source, trust.target("digits/1.0.0/int8.edgeml"), store)
    fetched = obtain(source, target, store, FullDownload.NEVER)
    assert fetched.path.read_bytes() == new.read_bytes()
    assert fetched.received_bytes < new.stat().st_size / 10
