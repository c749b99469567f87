"""What was made is kept: it comes back as it was, damage is made anew, the least used goes first, names never clash."""

import os
import string

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.recipe import Activations, Export, Prune, Recipe, StaticInteger
from converters.store import Store, default_folder, key_of
from converters.verify import decode_result, encode_result
from edgeml.atomic import replacing
from edgeml.errors import StorageError
from edgeml.manifest import RuntimeFamily
from edgeml.probe import ProbeResult
from edgeml.tensors import DType, TensorSpec

FEW = settings(max_examples=25)
"""Each example writes files, and a disk takes its time."""
PARTS = st.one_of(st.text(max_size=8), st.integers(-(2**53), 2**53), st.booleans(), st.none())
EXPORT = Export(RuntimeFamily.ONNX)
RECIPES = [
    Recipe(EXPORT),
    Recipe(Export(RuntimeFamily.TFLITE)),
    Recipe(EXPORT, (), StaticInteger(Activations.INT8)),
    Recipe(EXPORT, (), StaticInteger(Activations.UINT8)),
    Recipe(EXPORT, (), StaticInteger(Activations.UINT8, float_layers=("a",))),
    Recipe(EXPORT, (), StaticInteger(Activations.UINT8, float_layers=("b",))),
    Recipe(EXPORT, (Prune(0.5, 8),)),
    Recipe(EXPORT, (Prune(0.5, 16),)),
    Recipe(EXPORT, (Prune(0.5, 16, seed=1),)),
]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "kept")


def used(store, key, seconds):
    """Say when a result was used last."""
    os.utime(store.folder / key, (seconds, seconds))


class TestWhatWasKept:
    @FEW
    @given(st.binary(max_size=2000), st.text(alphabet=string.ascii_letters, min_size=1))
    def test_comes_back_as_it_was(self, tmp_path_factory, data, name):
        store = Store(tmp_path_factory.getbasetemp() / "any")
        store.put(key_of(name), data)
        assert store.get(key_of(name)) == data

    def test_is_not_there_before(self, store):
        assert store.get(key_of("nothing")) is None

    def test_is_replaced_by_what_is_kept_later(self, store):
        store.put(key_of("one"), b"old")
        store.put(key_of("one"), b"new")
        assert store.get(key_of("one")) == b"new"
        assert len(list(store.folder.iterdir())) == 1

    @pytest.mark.parametrize("kept", [b"", b"x", b"what a model is made of"])
    def test_is_nothing_once_a_single_bit_of_it_is_damaged(self, store, kept):
        key = key_of("damaged")
        store.put(key, kept)
        whole = (store.folder / key).read_bytes()
        for at in range(len(whole)):
            (store.folder / key).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert store.get(key) is None

    def test_is_nothing_if_it_was_cut_short_or_made_longer(self, store):
        key = key_of("cut")
        store.put(key, b"some bytes")
        whole = (store.folder / key).read_bytes()
        for length in range(len(whole)):
            (store.folder / key).write_bytes(whole[:length])
            assert store.get(key) is None
        (store.folder / key).write_bytes(whole + b"x")
        assert store.get(key) is None

    def test_is_made_anew_after_damage(self, store):
        key = key_of("again")
        store.put(key, b"some bytes")
        (store.folder / key).write_bytes(b"rubbish")
        store.put(key, b"some bytes")
        assert store.get(key) == b"some bytes"

    def test_a_folder_in_its_place_is_nothing_and_cannot_be_written_over(self, store):
        key = key_of("folder")
        (store.folder / key).mkdir(parents=True)
        assert store.get(key) is None
        with pytest.raises(StorageError):
            store.put(key, b"data")

    def test_belongs_to_this_user_alone(self, store):
        store.put(key_of("mine"), b"data")
        assert (store.folder / key_of("mine")).stat().st_mode & 0o077 == 0


class TestTrim:
    def test_removes_what_was_used_longest_ago_until_the_rest_fits(self, store):
        small = Store(store.folder, limit_bytes=2 * (32 + 100))
        for index, name in enumerate("abcd"):
            small.put(key_of(name), bytes(100))
            used(small, key_of(name), 1000 + index)
        small.trim()
        assert [name for name in "abcd" if small.get(key_of(name)) is not None] == ["c", "d"]

    def test_what_is_looked_at_counts_as_used(self, store):
        small = Store(store.folder, limit_bytes=2 * (32 + 100))
        for index, name in enumerate("abc"):
            small.put(key_of(name), bytes(100))
            used(small, key_of(name), 1000 + index)
        assert small.get(key_of("a")) is not None
        small.trim()
        assert [name for name in "abc" if small.get(key_of(name)) is not None] == ["a", "c"]

    def test_keeps_everything_that_fits(self, store):
        for name in "abc":
            store.put(key_of(name), b"data")
        store.trim()
        assert all(store.get(key_of(name)) for name in "abc")

    def test_of_nothing_is_nothing(self, store):
        store.trim()
        assert not store.folder.exists()

    def test_leaves_alone_whatever_else_lies_in_its_folder(self, store):
        small = Store(store.folder, limit_bytes=0)
        small.put(key_of("kept"), b"data")
        others = ["thesis.tex", ".env", key_of("a")[:-1], key_of("b") + ".onnx", f".{key_of('c')}.txt"]
        for name in others:
            (store.folder / name).write_bytes(bytes(500))
            used(store, name, 1000)
        small.trim()
        assert {one.name for one in store.folder.iterdir()} == set(others)

    def test_does_not_count_what_is_not_its_own(self, store):
        small = Store(store.folder, limit_bytes=100)
        small.put(key_of("kept"), b"data")
        (store.folder / "thesis.tex").write_bytes(bytes(500))
        small.trim()
        assert small.get(key_of("kept")) == b"data"

    def test_removes_what_a_killed_writer_left_and_not_what_is_being_written(self, store):
        small = Store(store.folder, limit_bytes=0)
        with replacing(store.folder / key_of("torn")) as torn, replacing(store.folder / key_of("now")) as now:
            torn.write_bytes(b"half")
            now.write_bytes(b"half")
            used(store, torn.name, 1000)
            small.trim()
            assert (torn.exists(), now.exists()) == (False, True)
            torn.touch()

    @FEW
    @given(st.lists(st.integers(0, 400), max_size=8), st.integers(0, 2000))
    def test_never_leaves_more_than_the_limit_nor_removes_without_need(
        self, tmp_path_factory, lengths, limit_bytes
    ):
        store = Store(tmp_path_factory.mktemp("trim"), limit_bytes)
        for index, length in enumerate(lengths):
            store.put(key_of(index), bytes(length))
            used(store, key_of(index), 1000 + index)
        store.trim()
        left = [index for index in range(len(lengths)) if (store.folder / key_of(index)).exists()]
        assert sum(32 + lengths[index] for index in left) <= limit_bytes
        assert left == list(range(len(lengths) - len(left), len(lengths)))
        if len(left) < len(lengths):
            assert sum(32 + lengths[index] for index in (*left, len(lengths) - len(left) - 1)) > limit_bytes


class TestNames:
    @given(st.lists(PARTS, max_size=5), st.lists(PARTS, max_size=5))
    def test_are_the_same_for_the_same_parts_alone(self, one, other):
        same = msgspec.json.encode(one) == msgspec.json.encode(other)  # True and 1 are equal in Python
        assert (key_of(*one) == key_of(*other)) is same

    def test_tell_every_setting_of_a_recipe_apart(self):
        assert len({key_of("model", one) for one in RECIPES}) == len(RECIPES)

    def test_are_names_of_files(self):
        assert set(key_of("../../etc/passwd", 1)) <= set(string.hexdigits)


@pytest.mark.parametrize(
    ("cache", "expected"), [("/var/cache/me", "/var/cache/me"), ("", "/home/me/.cache"), ("not/absolute", "/home/me/.cache")]
)  # fmt: skip
def test_the_default_folder_is_in_the_users_cache(monkeypatch, cache, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(default_folder()) == f"{expected}/edgeml/convert"


@pytest.mark.parametrize("kind", ["float32", "int8", "int16", "uint8", "int64"])
def test_what_a_runtime_said_is_kept_to_the_last_bit(kind):
    spec = TensorSpec("scores", DType(kind), (1, 3), "", *((0.5, -3) if kind in {"int8", "uint8"} else ()))
    answers = np.arange(12).reshape(4, 3).astype(kind)
    said = ProbeResult(
        (spec,), (spec,), (answers,), 0.1 + 0.2, 1e-3, 123_456_789, "some runtime 1.0", "a host"
    )
    again = decode_result(encode_result(said))
    np.testing.assert_array_equal(again.answers[0], answers)
    assert again.answers[0].dtype == answers.dtype
    assert msgspec.json.encode(again.inputs) == msgspec.json.encode(said.inputs)
    for name in ("latency_p50_ms", "latency_p95_ms", "peak_memory_bytes", "runtime", "host"):
        assert getattr(again, name) == getattr(said, name)
