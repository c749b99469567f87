"""What is granted to models: by manifests, by what this device measured, and beside what the others have."""

import os
import subprocess
import sys

import msgspec
import pytest

from agent.admission import MARGIN_ELSEWHERE, MARGIN_HERE, PeakSource, Placement, own_bytes
from agent.ledger import Ledger
from agent.peaks import FILE, PEAKS_MAX, Peaks
from agent.sensors import Sensors
from edgeml.bundle import Bundle, write_bundle
from edgeml.errors import BudgetError
from edgeml.ids import Digest, ModelName, digest_of_file

MIB = 1 << 20
A, B = ModelName("a"), ModelName("b")
SHARED = 40 * MIB


@pytest.fixture
def measured(sample, tmp_path):
    """(path, digest) of the sample with a measured peak of 100 MiB in its manifest."""
    path = tmp_path / "measured.edgeml"
    with Bundle(sample[0]) as bundle:
        members = {entry.name: bundle.read(entry.name) for entry in bundle.manifest.files}
        cost = msgspec.structs.replace(bundle.manifest.measurement, peak_memory_bytes=100 * MIB)
        write_bundle(path, msgspec.structs.replace(bundle.manifest, measurement=cost), members)
    return path, digest_of_file(path)


@pytest.fixture
def ledger(tmp_path):
    def make(budget_mib):
        budget = None if budget_mib is None else budget_mib * MIB
        return Ledger(budget, Peaks(tmp_path), Sensors(), lambda: SHARED)

    return make


def test_a_variant_is_admitted_by_its_manifest_until_this_device_has_measured_it(ledger, measured):
    path, digest = measured
    book = ledger(300)
    assert book.peak(path, digest).source is PeakSource.MANIFEST
    by_manifest = book.admit(A, path, digest).granted_bytes
    assert by_manifest == round(100 * MIB * MARGIN_ELSEWHERE) - SHARED
    assert book.granted_bytes(A) == 0
    # A process that only waits stands for the worker; its highest memory is said to have been 10 MiB above what it is now.
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        worker.stdout.readline()
        now = Sensors().memory(worker.pid)
        granted = book.confirm(A, digest, worker.pid, now.rss_bytes + 10 * MIB)
        worker.stdin.close()
    assert granted == pytest.approx(round((now.uss_bytes + 10 * MIB) * MARGIN_HERE), rel=0.05)
    assert book.admit(A, path, digest).granted_bytes == granted
    assert ledger(300).peak(path, digest).source is PeakSource.TRIAL


def test_a_bundle_that_nobody_measured_is_guessed(ledger, sample):
    peak = ledger(None).peak(*sample)
    assert peak.source is PeakSource.GUESS
    assert 40 * MIB < peak.peak_bytes < 41 * MIB


def test_grants_of_others_are_respected_and_refusals_counted(ledger, measured):
    book = ledger(200)
    book.grant(B, 81 * MIB)
    assert book.most_bytes(A) == 79 * MIB
    with pytest.raises(BudgetError, match=r"79\.0 MiB are left"):
        book.admit(A, *measured)
    assert book.refused == 1
    book.release(B)
    assert book.admit(A, *measured).placement is Placement.BESIDE


def test_what_the_trial_measured_may_prove_too_much_and_grants_nothing_then(ledger, measured):
    book = ledger(200)
    with pytest.raises(BudgetError, match="measured here"):
        book.confirm(A, measured[1], os.getpid(), 1 << 40)
    assert book.granted_bytes(A) == 0
    # And it is refused before it is loaded the next time.
    with pytest.raises(BudgetError):
        book.admit(A, *measured)


def test_what_was_committed_is_granted_whether_it_fits_or_not(ledger, measured):
    book = ledger(50)
    assert book.expect(*measured) == own_bytes(round(100 * MIB * MARGIN_ELSEWHERE), SHARED)
    assert book.refused == 0


def test_the_newest_peaks_are_kept_and_a_damaged_file_is_said(tmp_path, caplog):
    peaks = Peaks(tmp_path)
    for number in range(PEAKS_MAX + 3):
        peaks.keep(Digest(f"{number:064x}"), number + 1)
    again = Peaks(tmp_path)
    assert again.get(Digest(f"{2:064x}")) is None
    assert again.get(Digest(f"{PEAKS_MAX + 2:064x}")) == PEAKS_MAX + 3
    (tmp_path / FILE).write_bytes(b"[]")
    assert Peaks(tmp_path).get(Digest(f"{PEAKS_MAX + 2:064x}")) is None
    assert "cannot be read" in caplog.text
