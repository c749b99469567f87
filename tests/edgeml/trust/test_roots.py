"""Which root of a fleet a device is given, and when it is another fleet's."""

import pytest

from edgeml.errors import ConfigError, EdgemlError, IncompatibleError, TrustError
from edgeml.ids import digest_of
from edgeml.roots import Roots, read_roots

from .conftest import Fleet

VERSIONS = 5


def rotated():
    fleet = Fleet()
    for role in ("timestamp", "root", "root", "snapshot"):
        fleet.rotate(role)
    return fleet


def files_of(fleet, versions=range(1, VERSIONS + 1)):
    return {version: fleet.files[f"{version}.root.json"] for version in versions}


@pytest.fixture(scope="module")
def ours():
    return files_of(rotated())


@pytest.fixture(scope="module")
def theirs():
    return files_of(rotated())


@pytest.mark.parametrize("version", range(1, VERSIONS + 1))
def test_a_device_keeps_any_root_that_it_has(ours, version):
    assert Roots(ours).choose(ours[version], None, "cam") == ours[version]
    assert Roots(ours).choose(ours[version], ours[version], "cam") == ours[version]


def test_a_fresh_device_is_given_the_newest_or_the_one_named(ours):
    assert Roots(ours).choose(None, None, "cam") == ours[VERSIONS]
    assert Roots(ours).choose(None, ours[2], "cam") == ours[2]


@pytest.mark.parametrize("version", range(1, VERSIONS + 1))
def test_another_fleets_is_refused_whoever_names_it(ours, theirs, version):
    for known, named in ((theirs[version], None), (None, theirs[version])):
        with pytest.raises(IncompatibleError, match="cam trusts another fleet"):
            Roots(ours).choose(known, named, "cam")


def test_a_device_keeps_its_first_whatever_is_named(ours):
    with pytest.raises(IncompatibleError, match="another trust anchor than the one named"):
        Roots(ours).choose(ours[1], ours[2], "cam")


@pytest.mark.parametrize(
    ("kept", "known", "error", "words"),
    [
        ((3, 4, 5), 2, None, ""),
        ((5,), 5, None, ""),
        ((4, 5), 2, TrustError, "3.root.json is missing"),
        ((1, 2, 4, 5), 1, TrustError, "3.root.json is missing"),
        ((1, 2), 3, IncompatibleError, "old copy"),
    ],
)
def test_a_repository_that_has_only_some_of_them(ours, kept, known, error, words):
    roots = Roots({version: ours[version] for version in kept})
    if error is None:
        assert roots.choose(ours[known], None, "cam") == ours[known]
        return
    with pytest.raises(error, match=words):
        roots.choose(ours[known], None, "cam")


@pytest.mark.parametrize("version", range(2, VERSIONS + 1))
def test_a_link_of_another_chain_is_not_followed(ours, theirs, version):
    with pytest.raises(TrustError, match=rf"{version}\.root\.json is not signed by the keys"):
        Roots(ours | {version: theirs[version]}).choose(ours[1], None, "cam")


def test_a_version_under_another_number_is_not_followed(ours):
    with pytest.raises(TrustError, match=r"2\.root\.json is not signed"):
        Roots({1: ours[1], 2: ours[1]}).choose(ours[1], None, "cam")


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"signed":{"_type":"root"},"signatures":[]}'])
def test_damage_is_an_error_of_ours(ours, damage):
    for files, known in ((ours, damage or b" "), (ours | {3: damage}, ours[1])):
        with pytest.raises(TrustError, match="is no root metadata"):
            Roots(files).choose(known, None, "cam")


def test_another_roles_metadata_are_no_anchor(ours):
    with pytest.raises(EdgemlError, match="not of a root"):
        Roots(ours).choose(rotated().files["timestamp.json"], None, "cam")


def test_what_a_repository_holds_is_found_by_name(ours, tmp_path):
    with pytest.raises(ConfigError, match="no signed metadata"):
        read_roots(tmp_path)
    metadata = tmp_path / "metadata"
    metadata.mkdir()
    for version in (9, 10):
        (metadata / f"{version}.root.json").write_bytes(ours[version % 5 + 1])
    for name in ("root.json", "11.root.json.part", "x.root.json", "0.root.json", "12.snapshot.json"):
        (metadata / name).write_bytes(b"no")
    roots = read_roots(tmp_path)
    assert roots.newest == ours[1]
    assert roots.with_digest(digest_of(ours[5])) == ours[5]
    assert roots.with_digest(digest_of(b"no")) is None
