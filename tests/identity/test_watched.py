"""A file that is replaced is noticed once, whatever else happens to it."""

from agent.watched import LOOK_EVERY_S, WatchedFile


def test_replacement_is_noticed_once_and_not_before_it_is_due(tmp_path):
    path, other = tmp_path / "identity.pem", tmp_path / "other"
    path.write_bytes(b"one")
    watched = WatchedFile(path)
    assert not watched.changed(10.0)
    other.write_bytes(b"two")
    other.replace(path)
    assert not watched.changed(10.0 + LOOK_EVERY_S / 2)
    assert watched.changed(10.0 + LOOK_EVERY_S)
    assert not watched.changed(10.0 + 2 * LOOK_EVERY_S)


def test_file_that_is_gone_is_no_change_and_a_new_one_is(tmp_path):
    path = tmp_path / "identity.pem"
    path.write_bytes(b"one")
    watched = WatchedFile(path)
    path.unlink()
    assert not watched.changed(10.0)
    path.write_bytes(b"two")
    assert watched.changed(20.0)
