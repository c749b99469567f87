"""What a device is asked: the rollout's policy on the way there, none on the way back."""

import pytest

from edgeml.manifest import RuntimeFamily
from edgeml.trustfacts import SignedFacts, SignedTarget
from edgeml.twin import FullDownload, Reported, Slot, Slots
from fleet.deployments import desired_for
from fleet.devices import Device, Twin
from fleet.rollout import Assignment, Plan, Rollout

DEVICE = Device(
    device="cam-1", tenant="main", profile="p", online=True, session=None, first_seen_ms=None, last_seen_ms=None,
    birth=None,
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


def test_priority_holds_on_the_way_there_and_back():
    rollout = Rollout(id="r", plan=Plan("m@1", priority=7), phase_since_ms=0, created_at_ms=0)
    signed = SignedTarget("m/1/v.edgeml", "b" * 64, 10, FACTS)
    for revert in (False, True):
        desired = desired_for(Assignment("cam-1", "m@1", revert), rollout, DEVICE, 1, lambda *_: signed)
        assert desired.policy.priority == 7


def test_way_back_names_a_slot_of_that_model_only():
    def twin(model, digest):
        return Twin(
            model, Reported(generation=1, slots=Slots(previous=Slot(f"{model}@1", digest, "t", 1))), "s"
        )

    device = DEVICE.with_twin(twin("n", "e" * 64)).with_twin(twin("m", "d" * 64))
    rollout = Rollout(id="r", plan=Plan("m@2"), phase_since_ms=0, created_at_ms=0)
    assert [one.model for one in device.models] == ["m", "n"]
    desired = desired_for(Assignment("cam-1", "m@1", revert=True), rollout, device, 1, lambda *_: None)
    assert desired.digest == "d" * 64
    gone = device.with_twin(Twin("m"))
    assert desired_for(Assignment("cam-1", "m@1", revert=True), rollout, gone, 1, lambda *_: None) is None
