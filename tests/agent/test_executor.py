"""Which error means again, and which means never."""

import pytest

from agent.executor import Delivery, Executor
from agent.journal import Entry
from agent.machine import Action, Event
from agent.updater import Perform
from edgeml import errors
from edgeml.errors import BudgetError
from edgeml.ids import DeploymentId, Digest, ModelName, ReleaseId
from edgeml.manifest import RuntimeFamily
from edgeml.trustfacts import SignedFacts, SignedTarget
from edgeml.twin import Desired, Slots

DIGEST = Digest("a" * 64)
RELEASE = ReleaseId("m@2")


def facts(release=RELEASE, counter=2, profiles=("p",)):
    return SignedFacts(release, "v", counter, profiles, RuntimeFamily.ONNX, 4096, Digest("0" * 64))


class Scripted:
    """An installer that does what it is told."""

    def slots(self, _model):
        return Slots()

    def __init__(self, error=None, target=None):
        self.error = error
        self.target = target or SignedTarget("m/2/v.edgeml", DIGEST, 10, facts())

    def fetch(self, _desired, _source):
        self.fail()
        return Delivery(self.target, 10)

    def fail(self, *_):
        if self.error:
            raise self.error

    def permit(self):
        self.fail()

    verify = activate = observe = commit = restore = fail


def perform(action, installer, **entry):
    desired = Desired(
        generation=1, deployment=DeploymentId("d"), release=RELEASE, target="m/2/v.edgeml", digest=DIGEST
    )
    return Executor(installer, "p").perform(
        Perform(ModelName("m"), action, Entry(desired=desired, facts=facts(), **entry), 0.0)
    )


@pytest.mark.parametrize(
    ("action", "event"),
    [
        (Action.FETCH, Event.FETCHED), (Action.VERIFY, Event.VERIFIED), (Action.WAIT, Event.READY), (Action.ACTIVATE, Event.ACTIVATED),
        (Action.OBSERVE, Event.HEALTHY), (Action.COMMIT, Event.COMMITTED), (Action.RESTORE, Event.ROLLED_BACK), (Action.REPORT, Event.REPORTED),
    ],
)  # fmt: skip
def test_success_is_the_next_event(action, event):
    assert perform(action, Scripted()).event is event


@pytest.mark.parametrize(
    ("action", "error", "event", "poisoned"),
    [
        (Action.FETCH, errors.LinkDownError("away"), Event.FAILED, False),
        (Action.FETCH, errors.PermanentTransferError("404"), Event.FAILED, False),
        (Action.FETCH, errors.StorageError("full"), Event.FAILED, False),
        # A proxy may have changed it; the signed content may yet come.
        (Action.FETCH, errors.DigestMismatchError("flipped"), Event.FAILED, False),
        # Expired, or a captive portal's page instead of metadata: neither is the release's fault.
        (Action.FETCH, errors.TrustError("expired"), Event.FAILED, False),
        (Action.FETCH, errors.DowngradeError("older"), Event.REFUSED, False),
        (Action.FETCH, BudgetError("too big", budget=1, observed=2, unit="bytes"), Event.REFUSED, False),
        (Action.VERIFY, errors.DigestMismatchError("rot"), Event.FAILED, False),
        (Action.ACTIVATE, errors.BackendError("golden vectors differ"), Event.REFUSED, True),
        (Action.ACTIVATE, errors.ManifestError("garbage"), Event.REFUSED, True),
        # It was right when it was verified: this disk has changed it since, and the content is not to blame.
        (Action.ACTIVATE, errors.DigestMismatchError("rot"), Event.REFUSED, False),
        # Too big for this device today; another budget may change that.
        (Action.ACTIVATE, BudgetError("too big", budget=1, observed=2, unit="bytes"), Event.REFUSED, False),
        (Action.ACTIVATE, errors.StorageError("EIO"), Event.FAILED, False),
        (Action.OBSERVE, errors.BackendError("crashed on trial"), Event.FAILED, True),
        (Action.COMMIT, errors.StorageError("full"), Event.FAILED, False),
        (Action.RESTORE, errors.StateError("no slot"), Event.FAILED, False),
    ],
)
def test_an_error_is_told_apart_by_what_helps(action, error, event, poisoned):
    result = perform(action, Scripted(error))
    assert (result.event, result.poisoned, result.reason) == (event, poisoned, error.message)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (SignedTarget("m/2/v.edgeml", Digest("b" * 64), 10, facts()), "signed as something else"),
        (
            SignedTarget("m/2/v.edgeml", DIGEST, 10, facts(release=ReleaseId("m@3"))),
            "signed as something else",
        ),
        (SignedTarget("m/2/v.edgeml", DIGEST, 10, facts(profiles=("other",))), "is for other"),
        (SignedTarget("m/2/v.edgeml", DIGEST, 10, facts(counter=4)), None),
        (SignedTarget("m/2/v.edgeml", DIGEST, 10, facts(counter=2)), "has committed 3"),
    ],
)
def test_what_is_signed_must_be_what_is_wanted_for_this_hardware_and_no_downgrade(target, words):
    result = perform(Action.FETCH, Scripted(target=target), release_counter=3)
    assert result.event is (Event.REFUSED if words else Event.FETCHED)
    assert (words or "") in result.reason
    assert not result.poisoned


@pytest.mark.parametrize(
    ("action", "event"),
    [(Action.FETCH, Event.POSTPONED), (Action.WAIT, Event.POSTPONED), (Action.VERIFY, Event.FAILED)],
)
def test_what_may_not_be_done_yet_is_postponed_and_not_failed(action, event):
    result = perform(action, Scripted(errors.PostponedError("the link is metered", wait_s=900.0)))
    assert (result.event, result.reason) == (event, "the link is metered")
    assert result.wait_s == (900.0 if event is Event.POSTPONED else 0.0)
