"""The manifest: canonical bytes, strict reading, and a clear word about newer formats."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import manifest as manifest_format
from edgeml.errors import ArtifactError, IncompatibleError, ManifestError
from edgeml.ids import Digest
from edgeml.manifest import (
    MANIFEST_BYTES_MAX,
    FileEntry,
    Manifest,
    Measurement,
    Provenance,
    Quality,
    RuntimeFamily,
    ScoreKind,
    Task,
    target_path,
)
from edgeml.tensors import BATCH, DType, TensorSpec

DIGEST = Digest("ab" * 32)
MANIFEST = Manifest(
    model="m", version="1.0", variant="onnx-fp32", runtime=RuntimeFamily.ONNX, profiles=("p",),
    inputs=(TensorSpec("x", DType.FLOAT32, (BATCH, 4)),), outputs=(TensorSpec("y", DType.FLOAT32, (BATCH, 3)),),
    files=(FileEntry("model.onnx", DIGEST, 10),), measurement=Measurement("h", "r", 1, 1.0, 2.0, 3),
    provenance=Provenance("s", DIGEST),
)  # fmt: skip


def changed(**fields):
    """The manifest's JSON with some fields replaced."""
    return json.dumps({**json.loads(manifest_format.encode(MANIFEST)), **fields}).encode()


def without(name):
    fields = json.loads(manifest_format.encode(MANIFEST))
    del fields[name]
    return json.dumps(fields).encode()


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True).map(lambda text: text.rstrip("_-") or "a")
TENSORS = st.builds(
    TensorSpec,
    name=st.text(max_size=10),
    dtype=st.sampled_from(DType),
    shape=st.lists(st.integers(-1, 300), max_size=4).map(tuple),
    layout=st.sampled_from(["", "NCHW"]),
    scale=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    zero_point=st.none() | st.integers(-200, 200),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
MANIFESTS = st.builds(
    Manifest,
    model=NAMES,
    version=NAMES,
    variant=NAMES,
    runtime=st.just(RuntimeFamily.ONNX),
    profiles=st.lists(NAMES, max_size=3).map(tuple),
    inputs=st.lists(TENSORS, min_size=1, max_size=3).map(tuple),
    outputs=st.lists(TENSORS, min_size=1, max_size=3).map(tuple),
    files=st.just((FileEntry("model.onnx", DIGEST, 10), FileEntry("golden.npz", DIGEST, 0))),
    measurement=st.builds(Measurement, st.text(max_size=9), st.text(max_size=9), st.integers(0, 64), FINITE, FINITE, st.integers(0, 1 << 40)),
    provenance=st.builds(Provenance, st.text(max_size=9), st.just(DIGEST), st.none() | st.just(DIGEST)),
    task=st.sampled_from(Task),
    scores=st.sampled_from(ScoreKind),
    labels=st.lists(st.text(max_size=9), max_size=4).map(tuple),
    quality=st.none() | st.builds(Quality, st.text(max_size=9), FINITE, FINITE, st.integers(0, 1 << 30), FINITE),
)  # fmt: skip


@given(MANIFESTS)
def test_what_was_encoded_is_decoded_and_encodes_to_the_same_bytes(manifest):
    data = manifest_format.encode(manifest)
    assert manifest_format.decode(data) == manifest
    assert manifest_format.encode(manifest_format.decode(data)) == data


def test_bytes_do_not_depend_on_the_order_of_keys_or_on_spaces():
    fields = json.loads(manifest_format.encode(MANIFEST))
    shuffled = json.dumps(dict(reversed(fields.items())), indent=4).encode()
    assert manifest_format.encode(manifest_format.decode(shuffled)) == manifest_format.encode(MANIFEST)
    assert list(fields) == sorted(fields)


def test_release_and_target_name_the_variant():
    assert MANIFEST.release == "m@1.0"
    assert MANIFEST.target == target_path(MANIFEST.release, "onnx-fp32") == "m/1.0/onnx-fp32.edgeml"


def test_a_members_entry_is_found_by_name():
    assert MANIFEST.file("model.onnx") == FileEntry("model.onnx", DIGEST, 10)
    assert MANIFEST.file("golden.npz") is None


@pytest.mark.parametrize(
    "name", ["model", "version", "variant", "runtime", "inputs", "files", "measurement", "provenance"]
)
def test_a_required_field_that_is_missing_is_named(name):
    with pytest.raises(ManifestError, match=name):
        manifest_format.decode(without(name))


ENTRY = {"name": "model.onnx", "sha256": DIGEST, "length_bytes": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"unknown": 1}, {"model": "../m"}, {"model": "M"}, {"version": ""}, {"variant": "a/b"}, {"profiles": ["a+"]},
        {"runtime": "pickle"}, {"task": "magic"}, {"inputs": []}, {"outputs": []}, {"inputs": None},
        {"files": []}, {"files": [ENTRY, ENTRY]}, {"files": [{**ENTRY, "sha256": "AB" * 32}]}, {"files": [{**ENTRY, "length_bytes": -1}]},
        {"files": [{**ENTRY, "length_bytes": "1"}]}, {"files": [{**ENTRY, "name": "model.tflite"}]}, {"files": [{**ENTRY, "mode": 1}]},
        {"runtime": "tflite"}, {"labels": [1]}, {"measurement": {}}, {"quality": {"metric": "m"}},
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_follow_the_format_is_refused(fields):
    with pytest.raises(ManifestError) as raised:
        manifest_format.decode(changed(**fields))
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 50_000, b"\x00" * 10],
    ids=repr,
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(ManifestError):
        manifest_format.decode(data)


def test_one_that_is_too_long_is_refused():
    padded = manifest_format.encode(MANIFEST)
    padded += b" " * (MANIFEST_BYTES_MAX - len(padded))
    assert manifest_format.decode(padded) == MANIFEST
    with pytest.raises(ManifestError, match="more than"):
        manifest_format.decode(padded + b" ")


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_format_is_named_even_if_nothing_else_is_understood(version):
    for data in (
        changed(format_version=version),
        json.dumps({"format_version": version, "brave": "new"}).encode(),
    ):
        with pytest.raises(IncompatibleError, match=f"format {version}") as raised:
            manifest_format.decode(data)
        assert raised.value.hint


def test_hostile_names_cannot_write_lines_or_escapes_into_a_log():
    for fields in (
        {"evil\nERROR: all is lost\x1b[2J": 1},
        {"model": "a\nb"},
        {"profiles": ["\x1b[2J"]},
        {"runtime": "a\u2028b"},
    ):
        with pytest.raises(ManifestError) as raised:
            manifest_format.decode(changed(**fields))
        assert raised.value.message.isprintable()
        assert str(raised.value).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused(data):
    with pytest.raises(ArtifactError):
        manifest_format.decode(data)


@given(name=st.sampled_from(Manifest.__struct_fields__), value=JSON)
def test_any_value_in_any_field_gives_a_manifest_or_an_error_of_ours(name, value):
    try:
        manifest = manifest_format.decode(changed(**{name: value}))
    except ArtifactError as error:
        sound = error.message.isprintable()
    else:
        sound = manifest_format.decode(manifest_format.encode(manifest)) == manifest
    assert sound


def test_values_are_immutable():
    with pytest.raises(AttributeError):
        MANIFEST.model = "other"
    assert msgspec.structs.replace(MANIFEST, model="other").model == "other"
