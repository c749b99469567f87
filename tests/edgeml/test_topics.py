"""The topic table: names, directions, and who may do what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import topics
from edgeml.ids import ChannelId, DeviceId, ModelName, TenantId
from edgeml.telemetry import Stream
from edgeml.topics import CONTROLLER_USER, RULES, Address, Direction, Leaf, Tail

TENANT = TenantId("acme")
CHANNEL = ChannelId("a1b2")
CAM, OTHER = DeviceId("cam-1"), DeviceId("cam-2")
TAILS = {
    Tail.NOTHING: None,
    Tail.STREAM: Stream.WINDOWS,
    Tail.MODEL: ModelName("digits"),
    Tail.CHANNEL: CHANNEL,
}


def topic_of(leaf, device=CAM, tenant=TENANT):
    return topics.device_topic(tenant, device, leaf, TAILS[RULES[leaf].tail])


ALL = [pytest.param(leaf, id=leaf.value) for leaf in Leaf]


@pytest.mark.parametrize("leaf", ALL)
def test_topic_that_is_written_is_read_back(leaf):
    tail = RULES[leaf].tail
    stream = TAILS[tail] if tail is Tail.STREAM else None
    model = TAILS[tail] if tail is Tail.MODEL else None
    channel = CHANNEL if tail is Tail.CHANNEL else None
    assert topics.parse(topic_of(leaf)) == Address(TENANT, CAM, leaf, stream, model, channel)


@pytest.mark.parametrize("leaf", ALL)
def test_rule_exists_for_every_leaf_and_retained_ones_are_small(leaf):
    rule = RULES[leaf]
    assert rule.qos == (0 if leaf in {Leaf.PULL, Leaf.DATA} else 1)
    assert rule.bytes_max <= 72 << 10
    assert not rule.retain or rule.bytes_max <= 8 << 10


@pytest.mark.parametrize("leaf", ALL)
@pytest.mark.parametrize("user", [CAM, OTHER, CONTROLLER_USER, "", "+", "#"])
def test_only_the_side_that_speaks_may_publish(leaf, user):
    speaker = CAM if RULES[leaf].direction is Direction.UP else CONTROLLER_USER
    assert topics.may_publish(TENANT, user, topic_of(leaf)) == (user == speaker)
    assert not topics.may_publish(TenantId("other"), user, topic_of(leaf))


@pytest.mark.parametrize("leaf", ALL)
@pytest.mark.parametrize("user", [CAM, OTHER, CONTROLLER_USER, "", "+", "#"])
def test_only_the_side_that_listens_may_receive(leaf, user):
    listener = CONTROLLER_USER if RULES[leaf].direction is Direction.UP else CAM
    assert topics.may_receive(TENANT, user, topic_of(leaf)) == (user == listener)
    assert not topics.may_receive(TenantId("other"), user, topic_of(leaf))


@pytest.mark.parametrize(
    "wide",
    [
        "#",
        "+/#",
        "em/v1/#",
        f"em/v1/{TENANT}/#",
        f"em/v1/{TENANT}/d/+/desired/+",
        f"em/v1/{TENANT}/d/{CAM}/desired/#",
        f"em/v1/{TENANT}/d/{CAM}/#",
        "$SYS/#",
    ],
)
@pytest.mark.parametrize("user", [CAM, CONTROLLER_USER])
def test_nobody_may_subscribe_to_more_than_the_table_says(wide, user):
    assert not topics.may_subscribe(TENANT, user, wide)


def test_each_side_may_subscribe_to_its_own_filters_only():
    for one in topics.down_filters(TENANT, CAM):
        assert topics.may_subscribe(TENANT, CAM, one)
        assert not topics.may_subscribe(TENANT, OTHER, one)
        assert not topics.may_subscribe(TENANT, CONTROLLER_USER, one)
    for one in topics.up_filters(TENANT):
        assert topics.may_subscribe(TENANT, CONTROLLER_USER, one)
        assert not topics.may_subscribe(TENANT, CAM, one)


def test_answers_to_pulls_go_to_whoever_pulls_and_not_to_the_agent_too():
    own = topic_of(Leaf.DATA)
    assert topics.may_subscribe(TENANT, CAM, own)
    assert not any("/data" in one for one in topics.down_filters(TENANT, CAM))
    for user, one in ((OTHER, own), (CONTROLLER_USER, own), (CAM, topic_of(Leaf.DATA, tenant="other")),
                      (CAM, f"em/v1/{TENANT}/d/{CAM}/data/+"), (CAM, f"em/v1/{TENANT}/d/{CAM}/data")):  # fmt: skip
        assert not topics.may_subscribe(TENANT, user, one)


def test_controller_may_say_that_it_is_there():
    assert topics.may_publish(TENANT, CONTROLLER_USER, topics.controller_topic(TENANT, "controller-1"))
    assert not topics.may_publish(TENANT, CAM, topics.controller_topic(TENANT, "controller-1"))
    assert not topics.may_publish(
        TENANT, CONTROLLER_USER, topics.controller_topic(TenantId("other"), "controller-1")
    )


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "em/v1/acme/d/cam-1",
        "em/v1/acme/d/cam-1/",
        "em/v1/acme/d/cam-1/state/windows",
        "em/v1/acme/d/cam-1/tele",
        "em/v1/acme/d/cam-1/tele/x",
        "em/v1/acme/d/cam-1/tele/windows/x",
        "em/v1/acme/d/cam-1/desired",
        "em/v1/acme/d/cam-1/desired/",
        "em/v1/acme/d/cam-1/desired/+",
        "em/v1/acme/d/cam-1/desired/a@1",
        "em/v1/acme/d/cam-1/reported/digits/x",
        "em/v1/acme/d/cam-1/ack/digits",
        "em/v2/acme/d/cam-1/state",
        "em/v1/acme/x/cam-1/state",
        "em/v1/acme/d/CAM/state",
        "em/v1/acme/d/../state",
        "em/v1/acme/d/+/state",
        "em/v1//d/cam-1/state",
        "em/v1/acme/d/cam\x001/state",
    ],
)
def test_anything_else_is_no_topic_of_ours(topic):
    assert topics.parse(topic) is None
    assert not topics.may_publish(TENANT, CAM, topic)
    assert not topics.may_receive(TENANT, CAM, topic)


@given(st.text(max_size=60), st.text(max_size=20))
def test_no_text_gives_access_by_accident(topic, user):
    if topics.may_publish(TENANT, user, topic) or topics.may_receive(TENANT, user, topic):
        address = topics.parse(topic)
        assert user == CONTROLLER_USER or (address is not None and address.device == user)


def test_mosquitto_is_told_the_same_rules():
    """Every line of the access list, read as mosquitto reads it, against the table."""
    lines = topics.mosquitto_acl(TENANT).splitlines()
    pattern_from = next(index for index, line in enumerate(lines) if line.startswith("pattern"))
    assert lines[0] == f"user {CONTROLLER_USER}"
    controller = [line.split(" ", 2)[1:] for line in lines[1:pattern_from]]
    patterns = [line.split(" ", 2)[1:] for line in lines[pattern_from:]]
    for leaf in Leaf:
        for access, allows in (("write", topics.may_publish), ("read", topics.may_receive)):
            for user, rules in ((CAM, patterns), (OTHER, patterns), (CONTROLLER_USER, controller)):
                granted = any(
                    one == access and matches(wanted.replace("%u", user), topic_of(leaf))
                    for one, wanted in rules
                )
                assert granted == allows(TENANT, user, topic_of(leaf)), (leaf, access, user)


def matches(pattern, topic):
    wanted, given_ = pattern.split("/"), topic.split("/")
    return len(wanted) == len(given_) and all(a in {"+", b} for a, b in zip(wanted, given_, strict=True))
