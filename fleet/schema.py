"""The tables of the fleet's database.

Decides what is stored under which key. Telemetry is exactly-once by its key (device, boot, seq) in the table of its
stream. Rows of other files' types are JSON in one column, beside the columns that are searched by. Reading and
writing them is the business of `devices`, `rollout_store` and `telemetry_store`.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION: Final = 2
metadata = MetaData()
# SQLite numbers rows by itself only if the column is an INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")

meta = Table("meta", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

devices = Table(
    "devices",
    metadata,
    Column("device", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("token_sha256", Text, nullable=False),
    Column("broker_hash", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("enrolled_at_ms", BigInteger, nullable=False),
    Column("first_seen_ms", BigInteger),
    Column("last_seen_ms", BigInteger),
    Column("online", Boolean, nullable=False, default=False),
    Column("session", Text),
    Column("birth", Text),
)

# What a device said of each of its models.
twins = Table(
    "twins",
    metadata,
    Column("device", Text, ForeignKey("devices.device", ondelete="CASCADE"), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("reported", Text, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("session", Text),
    Column("release", Text),
)

desired = Table(
    "desired",
    metadata,
    Column("device", Text, ForeignKey("devices.device", ondelete="CASCADE"), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("release", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("published", Boolean, nullable=False, default=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("release", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    # What the field said when it was last looked at.
    Column("evidence", Text, nullable=False, default="[]"),
)

rollout_events = Table(
    "rollout_events",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("rollout", Text, ForeignKey("rollouts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("line", Text, nullable=False),
    Column("evidence", Text, nullable=False),
)

assignments = Table(
    "assignments",
    metadata,
    Column("device", Text, ForeignKey("devices.device", ondelete="CASCADE"), primary_key=True),
    Column("deployment", Text, primary_key=True),
    Column("rollout", Text, ForeignKey("rollouts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("generation", BigInteger, nullable=False),
    Column("release", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("revert", Boolean, nullable=False),
    Column("retry", Integer, nullable=False),
    Column("incumbent", Text),
    Column("assigned_at_ms", BigInteger, nullable=False),
    Column("outcome", Text),
    Column("reason", Text, nullable=False, default=""),
    Column("decided_at_ms", BigInteger),
    Column("fetched_bytes", BigInteger, nullable=False, default=0),
)

windows = Table(
    "windows",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("device", Text, nullable=False),
    Column("boot", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("release", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    # The time it is judged by: started_at_ms if the device's clock is believable, else received_at_ms.
    Column("at_ms", BigInteger, nullable=False),
    Column("inferences", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("low_confidence", BigInteger, nullable=False),
    Column("slow", BigInteger, nullable=False),
    Column("labelled", BigInteger, nullable=False),
    Column("wrong", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("latency", Text, nullable=False),
    Column("monitor", Text),
    Column("sketch", Text),
    # What was wrong with inputs; NULL: nothing.
    Column("quality", Text),
    UniqueConstraint("device", "boot", "seq", name="windows_key"),
    Index("windows_release", "device", "release", "at_ms"),
    Index("windows_time", "at_ms"),
)

events = Table(
    "events",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("device", Text, nullable=False),
    Column("boot", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
    Column("release", Text),
    UniqueConstraint("device", "boot", "seq", name="events_key"),
    Index("events_time", "received_at_ms"),
)

# Inputs that devices were asked to sample; `body` is the row as it came. Came later than the other tables.
samples = Table(
    "samples",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("device", Text, nullable=False),
    Column("boot", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("release", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    Column("body_bytes", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("device", "boot", "seq", name="samples_key"),
    Index("samples_size", "device", "body_bytes"),
    Index("samples_time", "received_at_ms"),
)

stream_high = Table(
    "stream_high",
    metadata,
    Column("device", Text, primary_key=True),
    Column("boot", Text, primary_key=True),
    Column("stream", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    # What the device itself counted of this stream since its buffer was created.
    Column("produced", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
)

# What was turned away of devices that send too much. Came later than the other tables.
floods = Table(
    "floods",
    metadata,
    Column("device", Text, ForeignKey("devices.device", ondelete="CASCADE"), primary_key=True),
    Column("messages", BigInteger, nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("last_at_ms", BigInteger, nullable=False),
)

# Identities that two devices use. Came later than the other tables.
quarantines = Table(
    "quarantines",
    metadata,
    Column("device", Text, ForeignKey("devices.device", ondelete="CASCADE"), primary_key=True),
    Column("since_ms", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)

# Devices that were removed while a rollout was under way. Came later than the other tables.
removals = Table(
    "removals",
    metadata,
    Column("rollout", Text, ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
    Column("device", Text, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("asked", Boolean, nullable=False),
    Column("outcome", Text),
    Column("incumbent", Text),
)

monitors = Table(
    "monitors",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("release", Text, nullable=False),
    Column("body", Text, nullable=False),
)

controllers = Table(
    "controllers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
    Column("connected", Boolean, nullable=False),
    Column("refused", Text, nullable=False),
)
