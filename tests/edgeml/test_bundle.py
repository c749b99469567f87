"""Bundles: equal content gives equal bytes, hostile files are refused with the right error, and nothing else escapes."""

import io
import struct
import zipfile
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml import manifest as manifest_format
from edgeml.bundle import MEMBERS, Bundle, read_verified, write_bundle
from edgeml.errors import (
    ArtifactError,
    ConfigError,
    DigestMismatchError,
    IncompatibleError,
    ManifestError,
)
from edgeml.ids import Digest, digest_of, digest_of_file
from edgeml.manifest import MANIFEST_BYTES_MAX, Manifest, Measurement, Provenance, RuntimeFamily
from edgeml.tensors import BATCH, DType, TensorSpec

MANIFEST = Manifest(
    model="m", version="1", variant="v", runtime=RuntimeFamily.ONNX, profiles=("p",),
    inputs=(TensorSpec("x", DType.FLOAT32, (BATCH, 4)),), outputs=(TensorSpec("y", DType.FLOAT32, (BATCH, 3)),), files=(),
    measurement=Measurement("h", "r", 1, 1.0, 2.0, 3), provenance=Provenance("s", Digest("0" * 64)),
)  # fmt: skip
CONTENT = {"model.onnx": b"model " * 50, "monitor.json": b"{}", "golden.npz": b"vectors"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "good.edgeml"
    write_bundle(path, MANIFEST, CONTENT)
    return path.read_bytes()


def complete(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return manifest_format.decode(archive.read("manifest.json"))


def open_and_verify(data, tmp_path):
    path = tmp_path / "it.edgeml"
    path.write_bytes(data)
    with Bundle(path) as opened:
        opened.verify()
        return {entry.name: opened.read(entry.name) for entry in opened.manifest.files}


def zipped(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def members_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def central(data, name):
    """Where the central directory's record of a member begins."""
    end = data.rindex(b"PK\x05\x06")
    position = struct.unpack_from("<I", data, end + 16)[0]
    while data[position + 46 :][: len(name)] != name:
        position += 46 + sum(struct.unpack_from("<HHH", data, position + 28))
    return position


def patched(data, position, form, *values):
    changed = bytearray(data)
    struct.pack_into(form, changed, position, *values)
    return bytes(changed)


def with_manifest(data, manifest_bytes):
    return zipped([("manifest.json", manifest_bytes), *members_of(data)[1:]])


class TestWriting:
    def test_what_was_written_is_read(self, good, tmp_path):
        assert open_and_verify(good, tmp_path) == CONTENT

    def test_equal_content_gives_equal_bytes_whatever_the_order_of_the_members(self, good, tmp_path):
        path = tmp_path / "again.edgeml"
        write_bundle(path, MANIFEST, dict(reversed(CONTENT.items())))
        assert path.read_bytes() == good

    def test_the_manifest_that_is_returned_lists_the_members(self, tmp_path):
        written = write_bundle(tmp_path / "x", MANIFEST, CONTENT)
        assert {entry.name: (entry.sha256, entry.length_bytes) for entry in written.files} == {
            name: (digest_of(data), len(data)) for name, data in CONTENT.items()
        }

    def test_members_lie_in_their_fixed_order_stored_and_dated_1980(self, good):
        with zipfile.ZipFile(io.BytesIO(good)) as archive:
            infos = archive.infolist()
        assert [info.filename for info in infos] == [
            name for name in MEMBERS if name in {"manifest.json", *CONTENT}
        ]
        assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.external_attr >> 16 for info in infos} == {0o644}

    @pytest.mark.parametrize("name", ["manifest.json", "../model.onnx", "extra"])
    def test_a_member_that_is_none_of_a_bundles_is_a_programmers_error(self, tmp_path, name):
        with pytest.raises(ValueError, match="no such"):
            write_bundle(tmp_path / "x", MANIFEST, {**CONTENT, name: b""})
        assert list(tmp_path.iterdir()) == []

    @given(
        contents=st.dictionaries(st.sampled_from(MEMBERS[2:]), st.binary(max_size=300)),
        model=st.binary(max_size=300),
    )
    @settings(max_examples=30)
    def test_any_content_survives(self, tmp_path_factory, contents, model):
        path = tmp_path_factory.mktemp("any") / "x.edgeml"
        write_bundle(path, MANIFEST, {"model.onnx": model, **contents})
        with Bundle(path) as opened:
            assert {entry.name: opened.read(entry.name) for entry in opened.manifest.files} == {
                "model.onnx": model,
                **contents,
            }


def extra_member(data):
    return zipped([*members_of(data), ("extra.bin", b"x")])


def escaping_name(data):
    return zipped([*members_of(data), ("../../etc/cron.d/x", b"x")])


def name_twice(data):
    return data.replace(b"golden.npz", b"model.onnx")


def no_manifest(data):
    return zipped(members_of(data)[1:])


def overlapping(data):
    position = central(data, b"golden.npz")
    target = struct.unpack_from("<I", data, central(data, b"model.onnx") + 42)[0]
    return patched(data, position + 42, "<I", target + 10)


def local(name, content):
    header = (b"PK\x03\x04", 20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(name), 0)
    return struct.pack("<4s5H3I2H", *header) + name.encode() + content


def listing(name, content, offset):
    sizes = (zlib.crc32(content), len(content), len(content), len(name), 0, 0, 0, 0, 0, offset)
    return struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, *sizes) + name.encode()


def end(entries, size, offset):
    return struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, entries, entries, size, offset, 0)


def barely_overlapping(data):
    """The model ends with most of the next member's header; every digest and CRC is sound."""
    shared = 40
    following = local("monitor.json", b"{}")
    model = CONTENT["model.onnx"] + following[:shared]
    files = tuple(
        manifest_format.FileEntry(name, digest_of(content), len(content))
        for name, content in [("model.onnx", model), ("monitor.json", b"{}")]
    )
    about = manifest_format.encode(msgspec.structs.replace(MANIFEST, files=files))
    body = local("manifest.json", about)
    listed = listing("manifest.json", about, 0) + listing("model.onnx", model, len(body))
    body += local("model.onnx", model)
    listed += listing("monitor.json", b"{}", len(body) - shared)
    body += following[shared:]
    return body + listed + end(3, len(listed), len(body))


def encrypted(data):
    return patched(data, central(data, b"model.onnx") + 8, "<H", 0x1)


def huge_member(data):
    return patched(data, central(data, b"model.onnx") + 20, "<II", 0xFFFF_FFF0, 0xFFFF_FFF0)


def flipped_byte(data):
    position = data.index(b"model model ") + 20
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def swapped_members(data):
    """Another content of the same length, with a sound CRC."""
    return zipped([(name, content.replace(b"model ", b"MODEL ")) for name, content in members_of(data)])


def newer_format(data):
    newer = msgspec.structs.replace(complete(data), format_version=2)
    return with_manifest(data, manifest_format.encode(newer))


def newer_format_with_unknown_fields(data):
    return with_manifest(data, b'{"format_version": 2, "wholly": "other"}')


def unlisted_member(data):
    listed = complete(data)
    return with_manifest(
        data, manifest_format.encode(msgspec.structs.replace(listed, files=listed.files[:1]))
    )


def missing_member(data):
    return zipped(members_of(data)[:-1])


def endless_manifest(data):
    return with_manifest(data, b" " * (MANIFEST_BYTES_MAX + 1))


BAD = [
    (lambda data: b"", ArtifactError),
    (lambda data: b"PK\x05\x06" + bytes(18), ArtifactError),
    (lambda data: data[:-30], ArtifactError),
    (lambda data: data[: len(data) // 2], ArtifactError),
    (flipped_byte, ArtifactError),
    (swapped_members, DigestMismatchError),
    (lambda data: zipped(members_of(data), zipfile.ZIP_DEFLATED), ArtifactError),
    (extra_member, ArtifactError),
    (escaping_name, ArtifactError),
    (name_twice, ArtifactError),
    (no_manifest, ArtifactError),
    (overlapping, ArtifactError),
    (barely_overlapping, ArtifactError),
    (encrypted, ArtifactError),
    (huge_member, ArtifactError),
    (newer_format, IncompatibleError),
    (newer_format_with_unknown_fields, IncompatibleError),
    (unlisted_member, ArtifactError),
    (missing_member, ArtifactError),
    (endless_manifest, ManifestError),
    (lambda data: with_manifest(data, b"{"), ManifestError),
    (lambda data: with_manifest(data, b"[" * 100_000), ManifestError),
    (lambda data: with_manifest(data, b'{"model": "\xff"}'), ManifestError),
]


class TestReading:
    @pytest.mark.parametrize(("spoil", "error"), BAD, ids=[getattr(one, "__name__", "") for one, _ in BAD])
    def test_a_bad_bundle_is_refused_with_one_line(self, good, tmp_path, spoil, error):
        bad = spoil(good)
        assert bad != good
        with pytest.raises(ArtifactError) as raised:
            open_and_verify(bad, tmp_path)
        assert type(raised.value) is error or (error is ArtifactError and isinstance(raised.value, error))
        assert raised.value.exit_code == 3
        assert "\n" not in raised.value.message

    def test_a_manifest_that_is_too_long_is_refused_before_it_is_read(self, good, tmp_path, monkeypatch):
        (tmp_path / "x").write_bytes(endless_manifest(good))
        monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("was read"))
        with pytest.raises(ManifestError):
            Bundle(tmp_path / "x")

    @pytest.mark.parametrize("path", ["missing", "."])
    def test_a_file_that_cannot_be_opened_is_the_users_to_fix(self, tmp_path, path):
        with pytest.raises(ConfigError):
            Bundle(tmp_path / path)
        with pytest.raises(ConfigError):
            read_verified(tmp_path / path, Digest("0" * 64))

    def test_a_member_that_is_not_there_is_refused(self, good, tmp_path):
        (tmp_path / "x").write_bytes(good)
        with Bundle(tmp_path / "x") as opened:
            assert opened.has("golden.npz")
            assert not opened.has("report.json")
            with pytest.raises(ArtifactError, match=r"has no report\.json"):
                opened.read("report.json")

    def test_the_model_is_the_one_of_the_runtime(self, good, tmp_path):
        (tmp_path / "x").write_bytes(good)
        with Bundle(tmp_path / "x") as opened:
            assert opened.model() == CONTENT["model.onnx"]

    def test_a_file_of_another_digest_is_not_even_opened_as_a_bundle(self, good, tmp_path):
        path = tmp_path / "x"
        path.write_bytes(good)
        read_verified(path, digest_of_file(path)).close()
        path.write_bytes(b"something else entirely")
        with pytest.raises(DigestMismatchError):
            read_verified(path, digest_of(good))

    def test_the_file_is_closed_when_it_is_refused(self, tmp_path):
        (tmp_path / "x").write_bytes(b"no bundle")
        # A file left open would be a ResourceWarning, and warnings are errors here.
        for _ in range(10):
            with pytest.raises(ArtifactError):
                Bundle(tmp_path / "x")


@given(st.binary(max_size=600))
@settings(max_examples=200)
def test_any_bytes_are_refused_and_nothing_else_escapes(tmp_path_factory, data):
    with pytest.raises(ArtifactError):
        open_and_verify(data, tmp_path_factory.getbasetemp())


@given(data=st.data())
@settings(max_examples=400)
def test_any_mutation_of_a_good_bundle_gives_the_same_content_or_an_error_of_ours(
    good, tmp_path_factory, data
):
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        # The structure is at the end; half of the changes go there.
        first = data.draw(st.sampled_from([0, len(good) - 300]))
        position = data.draw(st.integers(first, len(changed) - 1))
        match data.draw(st.sampled_from(["set", "flip", "cut", "insert", "number"])):
            case "set":
                changed[position] = data.draw(st.integers(0, 255))
            case "flip":
                changed[position] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del changed[position : position + data.draw(st.integers(1, 40))]
            case "insert":
                changed[position:position] = data.draw(st.binary(min_size=1, max_size=40))
            case "number" if position + 4 <= len(changed):
                struct.pack_into(
                    "<I",
                    changed,
                    position,
                    data.draw(st.sampled_from([0, 1, 0xFFFF, 0xFFFF_FFFF, 0x7FFF_FFFF])),
                )
        if len(changed) < 2:
            break
    try:
        content = open_and_verify(bytes(changed), tmp_path_factory.getbasetemp())
    except ArtifactError as error:
        sound = "\n" not in error.message
    else:
        sound = set(content) <= set(MEMBERS)
    assert sound


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("net.onnx", "it is a model: make a bundle of it with `edgeml package`"),
        ("net.tflite", "it is a model: make a bundle of it with `edgeml package`"),
        ("net.pt2", "it is a model: make a bundle of it with `edgeml convert`"),
        ("data.npz", "it holds arrays: give the .edgeml file"),
        ("other.edgeml", "give the .edgeml file"),
    ],
)
def test_what_is_given_for_a_bundle_is_named_by_what_it_is(tmp_path, name, hint):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("x.npy", b"")
    contents = [(tmp_path / name).read_bytes()]
    if not name.endswith(".edgeml"):
        contents.append(b"no zip")
    for content in contents:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="is not a bundle") as caught:
            Bundle(tmp_path / name)
        assert hint in caught.value.hint
