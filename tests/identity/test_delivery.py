"""What an enrolled device is there for: signed releases over mutual TLS, by the real fetching child."""

import subprocess
import sys

import msgspec
import sqlalchemy as sa

from agent.config import load
from agent.enrolment import enrol
from agent.fetch import Answer, Job
from agent.route import way_to_fleet
from edgeml import atomic
from edgeml.testing import sample_bundle
from fleet import founding, identities, identity_schema
from fleet.config import database_url
from fleet.store import Store


def test_enrolled_device_fetches_a_signed_release_by_its_certificate_alone(fleet, tmp_path):
    digest = sample_bundle(tmp_path / "sample.edgeml")
    (published,) = founding.publish(fleet.home, fleet.store, [tmp_path / "sample.edgeml"], fleet.home.keys)
    config = load(enrol(fleet.wish(tmp_path / "kit"), lambda _line: None, 0).settings_path)
    trust = tmp_path / "trust"
    atomic.write_bytes(trust / "root.json", (tmp_path / "kit" / "root.json").read_bytes())
    (tmp_path / "store").mkdir()
    job = Job(
        target=published.target.path,
        trust_directory=str(trust),
        store_directory=str(tmp_path / "store"),
        repository=way_to_fleet(config),
        now_ms=fleet.clock.now_ms(),
        storage_bytes=1 << 30,
    )
    done = subprocess.run(
        [sys.executable, "-m", "agent.fetch"], input=msgspec.json.encode(job), capture_output=True, check=True
    )
    answer = msgspec.json.decode(done.stdout.splitlines()[-1], type=Answer)
    assert answer.error == "", answer.message
    assert answer.digest == published.target.digest == digest


def test_database_of_an_earlier_edgeml_gets_the_new_tables(fleet):
    with fleet.store.write() as connection:
        identity_schema.metadata.drop_all(connection, tables=list(identity_schema.TABLES))
    again = Store(database_url(fleet.home, fleet.config))
    with again.read() as connection:
        assert identities.load_requests(connection) == ()
        assert sa.inspect(connection).has_table("certificates")
    again.close()
