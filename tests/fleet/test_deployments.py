"""What a device is asked: the rollout's policy on the way there, none on the way back."""

import pytest

from edgeml.manifest import RuntimeFamily
from edgeml.trustfacts import SignedFacts, SignedTarget
from edgeml.twin import FullDownload
from fleet.deployments import desired_for
from fleet.devices import Device
from fleet.rollout import Assignment, Plan, Rollout

DEVICE = Device(
    device="cam-1", tenant="main", profile="p", online=True, session=None, first_seen_ms=None, last_seen_ms=None,
    release=None, birth=None, reported=None, reported_session=None,
)  # fmt: skip
FACTS = SignedFacts("m@1", "v", 1, ("p",), RuntimeFamily.ONNX, 4096, "a" * 64)


@pytest.mark.parametrize("policy", FullDownload)
def test_full_downloads_may_be_forbidden_on_the_way_there_but_not_back(policy):
    rollout = Rollout(id="r", plan=Plan("m@1", full_download=policy), phase_since_ms=0, created_at_ms=0)

    def asked(revert):
        assignment = Assignment("cam-1", "m@1", revert)
        signed = SignedTarget("m/1/v.edgeml", "b" * 64, 10, FACTS)
        return desired_for(assignment, rollout, DEVICE, 1, lambda _release, _profile: signed).policy

    assert asked(revert=False).full_download is policy
    assert asked(revert=True).full_download is FullDownload.ALWAYS
