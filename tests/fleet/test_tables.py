"""What people are shown: what devices say stands there as it is, whatever it is."""

from edgeml.ids import DeviceId, ModelName, ReleaseId
from edgeml.telemetry import Loss
from edgeml.twin import Outcome
from fleet import tables
from fleet.overview import DeviceView, ModelView
from fleet.rollout import Plan, Rollout, RolloutState

HOSTILE = "[/x] [link=http://evil]here[/link] [red]all is well :smile:"
RELEASE = ReleaseId("digits@1.0.0")


def shown(capsys, renderable):
    tables.show(renderable)
    return " ".join(capsys.readouterr().out.split())


def test_a_devices_reason_that_looks_like_markup(capsys):
    model = ModelView(
        model=ModelName("digits"), release=None, state=None, desired_release=RELEASE, desired_generation=1, reported_generation=1,
        outcome=Outcome.FAILED, reason=HOSTILE,
    )  # fmt: skip
    device = DeviceView(
        device=DeviceId("cam-1"), profile="generic-x86-64", online=True, last_seen_ms=0, models=(model,), rows=Loss(),
    )  # fmt: skip
    words = shown(capsys, tables.devices_table([device], 0))
    assert all(word in words for word in HOSTILE.split())


def test_a_rollouts_reason_that_looks_like_markup(capsys):
    rollout = Rollout(
        id="r1",
        plan=Plan(RELEASE),
        state=RolloutState.ROLLED_BACK,
        reason=HOSTILE,
        phase_since_ms=0,
        created_at_ms=0,
    )
    assert HOSTILE in shown(capsys, tables.rollouts_table([rollout]))
