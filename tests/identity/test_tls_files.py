"""The server's certificate and the authority: made once, made anew when due, never half."""

import dataclasses
import os
import shutil
import stat

import msgspec
import pytest

from edgeml.errors import ConfigError
from fleet import authority, tls_files


def server(fleet, config=None):
    tls_files.prepare(fleet.home, config or fleet.config, fleet.store, fleet.clock.now_ms())
    return tls_files.server_path(fleet.home).read_bytes()


def test_certificate_stays_until_two_thirds_of_its_life(fleet):
    first = server(fleet)
    fleet.clock.advance(200 * 86_400)
    assert server(fleet) == first
    fleet.clock.advance(70 * 86_400)
    assert server(fleet) != first


def test_certificate_is_made_anew_for_other_names_or_when_it_is_damaged(fleet):
    first = server(fleet)
    tls = msgspec.structs.replace(fleet.config.tls, names=("fleet.lan",))
    renamed = server(fleet, msgspec.structs.replace(fleet.config, tls=tls))
    assert renamed != first
    tls_files.server_path(fleet.home).write_bytes(b"damaged")
    assert server(fleet) not in {first, b"damaged"}


def test_secrets_of_the_fleet_are_its_owners_only(fleet):
    for path in (tls_files.server_path(fleet.home), fleet.home.authority / authority.KEY):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_authority_is_never_replaced(fleet):
    before = fleet.authority.fingerprint
    assert authority.ensure(fleet.home.authority, fleet.clock.now_ms()).fingerprint == before
    (fleet.home.authority / authority.KEY).unlink()
    with pytest.raises(ConfigError, match="no certificate authority"):
        authority.ensure(fleet.home.authority, fleet.clock.now_ms())


def test_key_and_certificate_that_do_not_belong_together_are_refused(fleet, tmp_path):
    authority.ensure(tmp_path / "other", fleet.clock.now_ms())
    shutil.copy(tmp_path / "other" / authority.KEY, fleet.home.authority / authority.KEY)
    with pytest.raises(ConfigError, match="do not belong together"):
        authority.load(fleet.home.authority)


def test_authority_that_was_cut_short_is_made_by_the_next_call(fleet, tmp_path):
    for after_syncs in range(20):
        directory = tmp_path / f"ca-{after_syncs}"
        child = os.fork()
        if not child:
            left, real = [after_syncs], os.fsync

            def fsync(descriptor, left=left, real=real):
                if not left[0]:
                    os._exit(9)
                left[0] -= 1
                real(descriptor)

            os.fsync = fsync
            authority.ensure(directory, fleet.clock.now_ms())
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        made = authority.ensure(directory, fleet.clock.now_ms())
        assert dataclasses.is_dataclass(made)
        assert made.key.public_key() == made.certificate.public_key()
    assert after_syncs == 5
