"""Making a fleet: all of it, or something that the next call finishes. Publishing in it: only what agents load."""

import os
import shutil
import time

import msgspec
import pytest

from edgeml.bundle import Bundle, write_bundle
from edgeml.errors import ConfigError, IncompatibleError
from edgeml.manifest import RuntimeFamily
from edgeml.source import DirectorySource
from edgeml.testing import sample_bundle
from edgeml.trust import TrustStore
from fleet import founding
from fleet.config import FleetHome, database_url, load
from fleet.keys import load_keys
from fleet.store import Store

PASSPHRASE = b"correct horse"


def found_and_die(home, after_syncs):
    """Make a fleet in a process of its own that ends, as by a power cut, at a certain write; tell whether it finished."""
    child = os.fork()
    if not child:
        done, real = 0, os.fsync

        def fsync(descriptor):
            nonlocal done
            if done == after_syncs:
                os._exit(9)
            done += 1
            real(descriptor)

        os.fsync = fsync
        founding.found(home, PASSPHRASE)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_whatever_an_interrupted_call_left_the_next_one_finishes(tmp_path):
    interrupted = 0
    for after_syncs in range(100):
        home = FleetHome(tmp_path / str(after_syncs))
        if found_and_die(home, after_syncs):
            break
        interrupted += 1
        founding.found(home, PASSPHRASE)
        keys = load_keys(home.keys, PASSPHRASE)
        trust = tmp_path / "trust" / str(after_syncs)
        trust.mkdir(parents=True)
        (trust / "root.json").write_bytes(keys.anchor)
        TrustStore(trust, DirectorySource(home.repository), now_ms=time.time_ns() // 1_000_000).refresh()
        with pytest.raises(ConfigError, match="never overwritten"):
            founding.found(home, PASSPHRASE)
    assert interrupted > 10


def test_a_lost_repository_is_not_replaced_by_an_empty_one(tmp_path):
    home = FleetHome(tmp_path / "fleet")
    founding.found(home)
    shutil.rmtree(home.repository)
    with pytest.raises(ConfigError, match="never overwritten"):
        founding.found(home)


def test_keys_are_not_mixed_with_other_files(tmp_path):
    home = FleetHome(tmp_path / "fleet")
    home.keys.mkdir(parents=True)
    (home.keys / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        founding.found(home)
    assert [path.name for path in home.directory.iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in home.keys.iterdir()] == ["notes.txt"]


def test_nothing_is_published_where_one_is_for_no_agent(tmp_path):
    home = FleetHome(tmp_path / "fleet")
    founding.found(home)
    store = Store(database_url(home, load(home)))
    sample_bundle(tmp_path / "served.edgeml")
    with Bundle(tmp_path / "served.edgeml") as served:
        manifest = msgspec.structs.replace(
            served.manifest, variant="torchscript-fp32", runtime=RuntimeFamily.TORCHSCRIPT
        )
    write_bundle(tmp_path / "own.edgeml", manifest, {"model.torchscript": b"a program's own"})
    both = [tmp_path / "served.edgeml", tmp_path / "own.edgeml"]
    with pytest.raises(IncompatibleError, match="holds torchscript, which no agent loads"):
        founding.publish(home, store, both, home.keys)
    (published,) = founding.publish(home, store, both[:1], home.keys)
    assert published.is_new
    store.close()
