"""Rollouts in the database: plans, where they stand, who was asked what, and why.

Decides how a rollout, its history and its assignments are stored. What happens next is decided in `advance`.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import sqlalchemy as sa

from edgeml.ids import DeploymentId, DeviceId, Digest, ReleaseId
from edgeml.twin import Outcome

from . import schema
from .rollout import FINISHED, Decision, MetricEvidence, Rollout, RolloutState
from .store import upsert
from .twins import Verdict

LOG_E_LIMIT: Final = 1e6
"""Evidence is stored within these limits: JSON knows no infinity."""
_UNFINISHED = [state.value for state in RolloutState if state not in FINISHED]


class AssignmentRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a device was asked in a rollout, and how it ended."""

    device: DeviceId
    deployment: DeploymentId
    rollout: str
    generation: int
    release: ReleaseId
    digest: Digest
    revert: bool
    retry: int
    incumbent: ReleaseId | None
    assigned_at_ms: int
    outcome: Outcome | None = None
    reason: str = ""


class RolloutEvent(msgspec.Struct, frozen=True):
    """A line of a rollout's history, with the evidence for it."""

    at_ms: int
    line: str
    evidence: tuple[MetricEvidence, ...] = ()


def save(connection: sa.Connection, rollout: Rollout) -> None:
    """Store where a rollout stands."""
    row = {
        "id": rollout.id,
        "release": rollout.plan.release,
        "state": rollout.state.value,
        "created_at_ms": rollout.created_at_ms,
        "body": msgspec.json.encode(rollout).decode(),
    }
    upsert(connection, schema.rollouts, row)


def save_evidence(connection: sa.Connection, rollout_id: str, evidence: tuple[MetricEvidence, ...]) -> None:
    """Store what the field said when it was last looked at."""
    table = schema.rollouts
    connection.execute(table.update().where(table.c.id == rollout_id).values(evidence=_encoded(evidence)))


def load_evidence(connection: sa.Connection, rollout_id: str) -> tuple[MetricEvidence, ...]:
    """Load what the field said when it was last looked at."""
    table = schema.rollouts
    text = connection.scalar(sa.select(table.c.evidence).where(table.c.id == rollout_id))
    return msgspec.json.decode(text or "[]", type=tuple[MetricEvidence, ...])


def load(connection: sa.Connection, rollout_id: str) -> Rollout | None:
    """Load one rollout."""
    table = schema.rollouts
    body = connection.scalar(sa.select(table.c.body).where(table.c.id == rollout_id))
    return msgspec.json.decode(body, type=Rollout) if body else None


def lock(connection: sa.Connection, rollout_id: str) -> Rollout | None:
    """Load one rollout, and let nobody else change it before this transaction ends."""
    table = schema.rollouts
    # SQLite needs no more than the writing transaction that this is called in.
    connection.execute(sa.select(table.c.id).where(table.c.id == rollout_id).with_for_update())
    return load(connection, rollout_id)


def load_all(connection: sa.Connection) -> tuple[Rollout, ...]:
    """Load every rollout, newest first."""
    table = schema.rollouts
    bodies = connection.scalars(sa.select(table.c.body).order_by(table.c.created_at_ms.desc(), table.c.id))
    return tuple(msgspec.json.decode(body, type=Rollout) for body in bodies)


def load_unfinished(connection: sa.Connection) -> tuple[Rollout, ...]:
    """Load the rollouts that still go somewhere, oldest first."""
    table = schema.rollouts
    statement = sa.select(table.c.body).where(table.c.state.in_(_UNFINISHED)).order_by(table.c.created_at_ms)
    return tuple(msgspec.json.decode(body, type=Rollout) for body in connection.scalars(statement))


def save_event(connection: sa.Connection, decision: Decision, now_ms: int) -> None:
    """Store a decision's line and its evidence."""
    evidence = _encoded(decision.evidence)
    connection.execute(
        schema.rollout_events.insert().values(
            rollout=decision.rollout.id, at_ms=now_ms, line=decision.event, evidence=evidence
        )
    )


def save_line(connection: sa.Connection, rollout_id: str, line: str, now_ms: int) -> None:
    """Store a line of a rollout's history that is no decision of the rollout's."""
    connection.execute(
        schema.rollout_events.insert().values(rollout=rollout_id, at_ms=now_ms, line=line, evidence="[]")
    )


def load_events(connection: sa.Connection, rollout_id: str) -> tuple[RolloutEvent, ...]:
    """Load a rollout's history, oldest first."""
    table = schema.rollout_events
    rows = connection.execute(sa.select(table).where(table.c.rollout == rollout_id).order_by(table.c.id))
    return tuple(
        RolloutEvent(row.at_ms, row.line, msgspec.json.decode(row.evidence, type=tuple[MetricEvidence, ...]))
        for row in rows
    )


def save_assignment(connection: sa.Connection, row: AssignmentRow) -> None:
    """Store what a device is asked."""
    values = {name: getattr(row, name) for name in row.__struct_fields__ if name != "outcome"}
    connection.execute(schema.assignments.insert().values(**values))


def load_assignments(connection: sa.Connection, rollout_id: str) -> dict[DeviceId, AssignmentRow]:
    """Load the newest assignment of each device in a rollout."""
    table = schema.assignments
    rows = connection.execute(
        sa.select(table).where(table.c.rollout == rollout_id).order_by(table.c.generation)
    )
    return {DeviceId(row.device): _assignment(row) for row in rows}


def undecided(connection: sa.Connection, device: DeviceId, deployment: DeploymentId) -> AssignmentRow | None:
    """Load an assignment that has no outcome yet."""
    table = schema.assignments
    row = connection.execute(
        sa.select(table).where(
            table.c.device == device, table.c.deployment == deployment, table.c.outcome.is_(None)
        )
    ).one_or_none()
    return _assignment(row) if row else None


def decide(connection: sa.Connection, row: AssignmentRow, verdict: Verdict, now_ms: int) -> None:
    """Store how an assignment ended; the first word counts."""
    table = schema.assignments
    connection.execute(
        table.update()
        .where(table.c.device == row.device, table.c.deployment == row.deployment, table.c.outcome.is_(None))
        .values(
            outcome=verdict.outcome.value,
            reason=verdict.reason,
            decided_at_ms=now_ms,
            fetched_bytes=verdict.fetched_bytes,
        )
    )


def _encoded(evidence: tuple[MetricEvidence, ...]) -> str:
    finite = [msgspec.structs.replace(one, log_e=_finite(one.log_e)) for one in evidence]
    return msgspec.json.encode(finite).decode()


def _finite(log_e: float) -> float:
    return 0.0 if math.isnan(log_e) else min(max(log_e, -LOG_E_LIMIT), LOG_E_LIMIT)


def fetched_bytes(connection: sa.Connection) -> int:
    """Bytes that all decided deployments took over the network."""
    return int(connection.scalar(sa.select(sa.func.sum(schema.assignments.c.fetched_bytes))) or 0)


def _assignment(row: sa.Row[tuple[object, ...]]) -> AssignmentRow:
    return AssignmentRow(
        device=row.device,
        deployment=row.deployment,
        rollout=row.rollout,
        generation=row.generation,
        release=row.release,
        digest=row.digest,
        revert=bool(row.revert),
        retry=row.retry,
        incumbent=row.incumbent,
        assigned_at_ms=row.assigned_at_ms,
        outcome=Outcome(row.outcome) if row.outcome else None,
        reason=row.reason,
    )
