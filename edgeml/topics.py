"""The MQTT topic tree and who may use it.

Decides every topic's name, direction, QoS, retain flag and size limit in one table, and which authenticated user may
publish or subscribe where. Brokers are configured from this table, and the embedded broker asks it. Access is keyed
on the authenticated user, never on the client id. Wire: docs/protocol.md.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .ids import ChannelId, DeviceId, ModelName, TenantId, is_name
from .pull import ANSWER_BYTES_MAX, REQUEST_BYTES_MAX
from .telemetry import BATCH_BYTES_MAX, Stream
from .twin import MESSAGE_BYTES_MAX

ROOT: Final = "em/v1"


class Direction(enum.Enum):
    """Who publishes."""

    UP = "device to fleet"
    DOWN = "fleet to device"


class Leaf(enum.Enum):
    """Last level of a device's topics."""

    STATE = "state"
    BIRTH = "birth"
    DESIRED = "desired"
    REPORTED = "reported"
    TELEMETRY = "tele"
    ACK = "ack"
    PULL = "pull"
    DATA = "data"


class Tail(enum.Enum):
    """What follows the leaf."""

    NOTHING = "nothing"
    STREAM = "stream"
    MODEL = "model"
    CHANNEL = "channel"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one kind of topic is used."""

    direction: Direction
    qos: int
    retain: bool
    bytes_max: int
    tail: Tail = Tail.NOTHING


RULES: Final = MappingProxyType(
    {
        Leaf.STATE: Rule(Direction.UP, qos=1, retain=True, bytes_max=1024),
        Leaf.BIRTH: Rule(Direction.UP, qos=1, retain=False, bytes_max=MESSAGE_BYTES_MAX),
        Leaf.DESIRED: Rule(Direction.DOWN, qos=1, retain=True, bytes_max=MESSAGE_BYTES_MAX, tail=Tail.MODEL),
        Leaf.REPORTED: Rule(Direction.UP, qos=1, retain=True, bytes_max=MESSAGE_BYTES_MAX, tail=Tail.MODEL),
        Leaf.TELEMETRY: Rule(Direction.UP, qos=1, retain=False, bytes_max=BATCH_BYTES_MAX, tail=Tail.STREAM),
        Leaf.ACK: Rule(Direction.DOWN, qos=1, retain=False, bytes_max=1024),
        # QoS 0: what is lost is asked for again, piece by piece; confirming each as well would only cost more.
        Leaf.PULL: Rule(Direction.UP, qos=0, retain=False, bytes_max=REQUEST_BYTES_MAX),
        Leaf.DATA: Rule(Direction.DOWN, qos=0, retain=False, bytes_max=ANSWER_BYTES_MAX, tail=Tail.CHANNEL),
    }
)
CONTROLLER_USER: Final = "controller"
"""The name the controller logs in with; no device may have it."""


@dataclass(frozen=True, slots=True)
class Address:
    """What a topic says. `stream`, `model` and `channel` are set where the leaf's rule has them as its tail."""

    tenant: TenantId
    device: DeviceId
    leaf: Leaf
    stream: Stream | None = None
    model: ModelName | None = None
    channel: ChannelId | None = None


def device_topic(
    tenant: TenantId, device: DeviceId, leaf: Leaf, tail: Stream | ModelName | ChannelId | None = None
) -> str:
    """Write a device's topic. `tail` is what the leaf's rule asks for.

    >>> device_topic(TenantId("acme"), DeviceId("cam-1"), Leaf.TELEMETRY, Stream.WINDOWS)
    'em/v1/acme/d/cam-1/tele/windows'
    >>> device_topic(TenantId("acme"), DeviceId("cam-1"), Leaf.DESIRED, ModelName("digits"))
    'em/v1/acme/d/cam-1/desired/digits'
    """
    end = "" if tail is None else f"/{tail.value if isinstance(tail, Stream) else tail}"
    return f"{ROOT}/{tenant}/d/{device}/{leaf.value}{end}"


def controller_topic(tenant: TenantId, controller: str) -> str:
    """Topic of a controller's own presence: retained, with a last will."""
    return f"{ROOT}/{tenant}/ctl/{controller}/state"


def up_filters(tenant: TenantId) -> tuple[str, ...]:
    """What a controller subscribes to."""
    return tuple(
        f"{ROOT}/{tenant}/d/+/{_pattern(leaf)}"
        for leaf, rule in RULES.items()
        if rule.direction is Direction.UP
    )


def down_filters(tenant: TenantId, device: DeviceId) -> tuple[str, ...]:
    """What a device's agent subscribes to: all but the answers to pulls, which go to whoever pulls."""
    return tuple(
        f"{ROOT}/{tenant}/d/{device}/{_pattern(leaf)}"
        for leaf, rule in RULES.items()
        if rule.direction is Direction.DOWN and rule.tail is not Tail.CHANNEL
    )


def parse(topic: str) -> Address | None:
    """Read a device's topic; None if it is none of ours."""
    parts = topic.split("/")
    if len(parts) not in {6, 7} or f"{parts[0]}/{parts[1]}" != ROOT or parts[3] != "d":
        return None
    tenant, device = parts[2], parts[4]
    if not is_name(tenant) or not is_name(device):
        return None
    try:
        leaf = Leaf(parts[5])
    except ValueError:
        return None
    last = parts[6] if len(parts) == 7 else None
    match RULES[leaf].tail, last:
        case Tail.NOTHING, None:
            return Address(TenantId(tenant), DeviceId(device), leaf)
        case Tail.STREAM, str() if last in _STREAMS:
            return Address(TenantId(tenant), DeviceId(device), leaf, stream=Stream(last))
        case Tail.MODEL, str() if is_name(last):
            return Address(TenantId(tenant), DeviceId(device), leaf, model=ModelName(last))
        case Tail.CHANNEL, str() if is_name(last):
            return Address(TenantId(tenant), DeviceId(device), leaf, channel=ChannelId(last))
        case _:
            return None


def may_publish(tenant: TenantId, user: str, topic: str) -> bool:
    """Tell whether the authenticated user may publish to `topic`."""
    if user == CONTROLLER_USER:
        if topic.startswith(f"{ROOT}/{tenant}/ctl/") and topic.endswith("/state"):
            return True
        address = parse(topic)
        return (
            address is not None
            and address.tenant == tenant
            and RULES[address.leaf].direction is Direction.DOWN
        )
    address = parse(topic)
    return (
        address is not None
        and address.tenant == tenant
        and address.device == user
        and RULES[address.leaf].direction is Direction.UP
    )


def may_subscribe(tenant: TenantId, user: str, topic_filter: str) -> bool:
    """Tell whether the authenticated user may subscribe to `topic_filter`."""
    if user == CONTROLLER_USER:
        return topic_filter in up_filters(tenant)
    if not is_name(user):
        return False
    address = parse(topic_filter)
    is_own_channel = (
        address is not None
        and address.channel is not None
        and (address.tenant, address.device) == (tenant, user)
    )
    return is_own_channel or topic_filter in down_filters(tenant, DeviceId(user))


def may_receive(tenant: TenantId, user: str, topic: str) -> bool:
    """Tell whether a message on `topic` may be delivered to the authenticated user."""
    address = parse(topic)
    if address is None or address.tenant != tenant:
        return False
    if user == CONTROLLER_USER:
        return RULES[address.leaf].direction is Direction.UP
    return address.device == user and RULES[address.leaf].direction is Direction.DOWN


def mosquitto_acl(tenant: TenantId) -> str:
    """The same rules as mosquitto's acl_file."""
    base = f"{ROOT}/{tenant}/d"
    lines = [f"user {CONTROLLER_USER}", f"topic write {ROOT}/{tenant}/ctl/+/state"]
    for leaf, rule in RULES.items():
        access = "read" if rule.direction is Direction.UP else "write"
        lines.append(f"topic {access} {base}/+/{_pattern(leaf)}")
    for leaf, rule in RULES.items():
        access = "write" if rule.direction is Direction.UP else "read"
        lines.append(f"pattern {access} {base}/%u/{_pattern(leaf)}")
    return "\n".join(lines) + "\n"


_STREAMS: Final = frozenset(stream.value for stream in Stream)


def _pattern(leaf: Leaf) -> str:
    return leaf.value if RULES[leaf].tail is Tail.NOTHING else f"{leaf.value}/+"
