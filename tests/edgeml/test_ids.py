"""Names and digests: safe in a topic, a URL and a file name, or refused."""

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import ConfigError
from edgeml.ids import (
    digest_of,
    digest_of_file,
    is_digest,
    is_name,
    parse_name,
    parse_release,
    release_id,
)

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True).filter(
    lambda text: ".." not in text
)
UNSAFE = {*"/\\+#$*?:%&<>|\"'`;@ \t\r\n\0~"}


@pytest.mark.parametrize("text", ["a", "0", "sensor-07", "a.b_c-d", "1.0.0", "x" * 63])
def test_a_name_is_accepted(text):
    assert is_name(text)
    assert parse_name(text, "device") == text


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "-a", "a-", "a..b", "a/b", "../etc", "A", "ä", "a b", "a\n", "\na", "a+", "#", "+", "$SYS", "x" * 64, "a\0b", "\uff11"],
)  # fmt: skip
def test_what_is_no_name_is_refused_and_quoted(text):
    assert not is_name(text)
    with pytest.raises(ConfigError) as raised:
        parse_name(text, "device")
    assert raised.value.message == f"device {text!r} is not a valid name"
    assert "\n" not in raised.value.message
    assert raised.value.hint


@given(st.text(max_size=70))
def test_no_name_has_a_character_with_a_meaning_elsewhere(text):
    if is_name(text):
        assert not set(text) & UNSAFE
        assert set(text) <= {*string.ascii_lowercase, *string.digits, *"._-"}
        assert text[0] not in "._-"
        assert ".." not in text


@given(NAMES, NAMES)
def test_a_release_is_split_as_it_was_joined(model, version):
    assert parse_release(release_id(model, version)) == (model, version)


@pytest.mark.parametrize("text", ["", "a", "@", "a@", "@1", "a@1@2", "a@1/2", "A@1", "a@1\n"])
def test_what_is_no_release_is_refused(text):
    with pytest.raises(ConfigError):
        parse_release(text)


@given(st.binary(max_size=3000))
def test_bytes_and_files_have_the_same_digest(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "digested"
    path.write_bytes(data)
    assert (
        digest_of(data)
        == digest_of(memoryview(data))
        == digest_of_file(path)
        == hashlib.sha256(data).hexdigest()
    )
    assert is_digest(digest_of(data))


def test_a_file_longer_than_one_piece_is_digested_whole(tmp_path):
    data = b"x" * ((1 << 20) + 1)
    (tmp_path / "long").write_bytes(data)
    assert digest_of_file(tmp_path / "long") == digest_of(data)


@pytest.mark.parametrize(
    "text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", "0x" + "0" * 62]
)
def test_what_is_no_digest_is_told(text):
    assert not is_digest(text)
