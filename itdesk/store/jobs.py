"""Jobs as rows: how they are queued with what caused them, claimed, and fenced.

A claim raises `epoch`; every later write of the claimer says which epoch it holds and changes
nothing when somebody else has the job meanwhile. All times are the database's. Jobs of one lane
get their positions in the order of their commits, because whoever adds to a lane holds a lock
on it until then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from itdesk.errors import Conflict, NotFound
from itdesk.frozen import frozen
from itdesk.model import Event, new_id
from itdesk.runtime import trace
from itdesk.store import events as journal
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor


class JobState(StrEnum):
    """Where a job is in its life."""

    WAITING = "waiting"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"


@frozen
class NewJob:
    """A job to be; one with a problem is written as failed, for an operator to see.

    One with `triggers` is left out when no active rule has any of them: whether there is one, the
    statement that writes it decides, so that a rule is never missed once its making was answered.
    """

    type: str
    args: str = "{}"
    lane: str | None = None
    dedupe_key: str | None = None
    seconds: float = 0.0
    event_id: UUID | None = None
    problem: str | None = None
    triggers: tuple[str, ...] = ()
    trace: str | None = field(default_factory=trace.current)
    id: UUID = field(default_factory=new_id)

    @classmethod
    def of(cls, type: str, args: Mapping[str, Any], **more: Any) -> "NewJob":
        """Return a job with these arguments; TypeError when they cannot be JSON."""
        return cls(type, orjson.dumps(dict(args)).decode(), **more)


@frozen
class Held:
    """One job in the hands of one worker, until its lease ends; `args` is JSON text."""

    id: UUID
    type: str
    args: str
    attempts: int
    epoch: int
    event_id: UUID | None
    taken_over: bool
    trace: str | None = None


@frozen
class Room:
    """How many more jobs of a type may be claimed, and how often each may be tried."""

    type: str
    slots: int
    attempts: int
    outbound: bool = False


@frozen
class QueuedJob:
    """A job as operators see it; what it was told stays unseen, for it may hold secrets."""

    id: UUID
    type: str
    lane: str | None
    state: JobState
    attempts: int
    owner: str | None
    lease_until: datetime | None
    run_at: datetime
    last_error: str | None
    event_id: UUID | None
    created_at: datetime
    finished_at: datetime | None


def _insert(first: int) -> str:
    """Return the statement that adds jobs, with parameters from that number on."""
    p = [f"${first + place}" for place in range(10)]
    return f"""
        held AS MATERIALIZED (
            SELECT pg_advisory_xact_lock(key)
            FROM (SELECT DISTINCT hashtextextended(lane, 0) AS key
                  FROM unnest({p[3]}::text[]) AS wanted (lane)
                  WHERE lane IS NOT NULL ORDER BY key) AS lanes
        )
        INSERT INTO jobs (id, type, args, lane, dedupe_key, run_at, event_id, state, last_error,
                          finished_at, trace)
        SELECT n.id, n.type, n.args::jsonb, n.lane, n.dedupe_key,
               now() + make_interval(secs => n.seconds), n.event_id,
               CASE WHEN n.problem IS NULL THEN 'waiting' ELSE 'failed' END, n.problem,
               CASE WHEN n.problem IS NOT NULL THEN now() END, n.trace
        FROM (SELECT count(*) FROM held) AS locked,
             unnest({p[0]}::uuid[], {p[1]}::text[], {p[2]}::text[], {p[3]}::text[],
                    {p[4]}::text[], {p[5]}::float8[], {p[6]}::uuid[], {p[7]}::text[],
                    {p[8]}::text[], {p[9]}::text[])
             WITH ORDINALITY
             AS n (id, type, args, lane, dedupe_key, seconds, event_id, problem, triggers, trace,
                   place)
        WHERE n.triggers IS NULL OR EXISTS (
            SELECT 1 FROM workflow_rules w
            WHERE w.active AND w.trigger = ANY (string_to_array(n.triggers, ',')))
        ORDER BY n.place
        ON CONFLICT (dedupe_key) WHERE state IN ('waiting', 'leased') DO NOTHING
    """  # noqa: S608 - numbers of parameters


_ADD = f"WITH {_insert(1)}"
# What ends the statement of a change that is one: its events and jobs are the parameters 1 to 21.
RECORDED = f"written AS ({journal.INSERT}), {_insert(12)}"
_RECORD = f"WITH {RECORDED}"


async def append(conn: Any, events: Sequence[Event], new: Sequence[NewJob]) -> int:
    """Write events and the jobs that they lead to, in one statement; return how many jobs."""
    if not new:
        await journal.append(conn, events)
        return 0
    if not events:
        return await add(conn, new)
    return queued(await conn.execute(_RECORD, *columns(events, new)))


async def add(conn: Any, new: Sequence[NewJob]) -> int:
    """Queue jobs, in order; one whose dedupe key is that of an unfinished job is left out."""
    return queued(await conn.execute(_ADD, *_columns(new)))


def queued(tag: str) -> int:
    """Return how many jobs a statement added, by what PostgreSQL said of it."""
    return int(tag.rpartition(" ")[2])


def columns(events: Sequence[Event], new: Sequence[NewJob]) -> tuple[list[Any], ...]:
    """Return the parameters of RECORDED."""
    return (*journal.columns(events), *_columns(new))


def _columns(new: Sequence[NewJob]) -> tuple[list[Any], ...]:
    return (
        [job.id for job in new],
        [job.type for job in new],
        [job.args for job in new],
        [job.lane for job in new],
        [job.dedupe_key for job in new],
        [job.seconds for job in new],
        [job.event_id for job in new],
        [job.problem for job in new],
        [",".join(job.triggers) or None for job in new],
        [job.trace for job in new],
    )


async def claim(
    conn: Any, room: Sequence[Room], *, owner: str, lease_seconds: float, suspects: bool
) -> list[Held]:
    """Take the first due jobs of each type that nobody holds; each gets a new epoch.

    Of a lane only the first unfinished job is due, and none while another one is held; of outbound
    jobs none is while a restored desk is paused. A job that outlived two claimers may be what
    killed them: only one such is taken, and only with `suspects`.
    """
    query = """
        WITH room AS (
            SELECT type, slots, attempts
            FROM unnest($1::text[], $2::int[], $3::int[], $7::bool[])
                 AS r (type, slots, attempts, outbound)
            WHERE NOT (outbound AND EXISTS (SELECT 1 FROM outbound_pause))
        ), suspect AS MATERIALIZED (
            SELECT j.id FROM jobs j JOIN room r ON r.type = j.type
            WHERE $6 AND j.state = 'leased' AND j.lease_until <= now()
              AND j.attempts >= 2 AND j.attempts < r.attempts
            ORDER BY j.attempts, j.position LIMIT 1
        ), due AS MATERIALIZED (
            SELECT free.id, free.taken_over
            FROM room r CROSS JOIN LATERAL (
                SELECT j.id, j.state = 'leased' AS taken_over FROM jobs j
                WHERE j.type = r.type AND j.attempts < r.attempts
                  AND j.state IN ('waiting', 'leased')
                  AND (j.state = 'waiting' AND j.run_at <= now()
                       OR j.state = 'leased' AND j.lease_until <= now()
                          AND (j.attempts < 2 OR j.id = (SELECT id FROM suspect)))
                  AND NOT EXISTS (
                      SELECT 1 FROM jobs e
                      WHERE e.lane = j.lane AND e.id <> j.id AND e.state IN ('waiting', 'leased')
                        AND (e.position < j.position
                             OR e.state = 'leased' AND e.lease_until > now()))
                ORDER BY j.position LIMIT r.slots FOR UPDATE OF j SKIP LOCKED
            ) AS free
        )
        UPDATE jobs j
        SET state = 'leased', owner = $4, lease_until = now() + make_interval(secs => $5),
            epoch = j.epoch + 1, attempts = j.attempts + 1
        FROM due WHERE j.id = due.id
        RETURNING j.id, j.type, j.args::text AS args, j.attempts, j.epoch, j.event_id,
                  due.taken_over, j.trace, j.position
    """
    rows = await conn.fetch(
        query,
        [r.type for r in room],
        [r.slots for r in room],
        [r.attempts for r in room],
        owner,
        lease_seconds,
        suspects,
        [r.outbound for r in room],
    )
    return [
        Held(
            row["id"],
            row["type"],
            row["args"],
            row["attempts"],
            row["epoch"],
            row["event_id"],
            row["taken_over"],
            row["trace"],
        )
        for row in sorted(rows, key=lambda row: row["position"])
    ]


async def renew(conn: Any, held: Held, *, lease_seconds: float) -> bool:
    """Hold a job for longer; False when somebody else has it now."""
    query = """
        UPDATE jobs SET lease_until = now() + make_interval(secs => $3)
        WHERE id = $1 AND epoch = $2 AND state = 'leased' RETURNING true
    """
    return await conn.fetchval(query, held.id, held.epoch, lease_seconds) is not None


async def finish(conn: Any, held: Held) -> bool:
    """Mark a job as done; False, and nothing written, when the claim was lost."""
    query = """
        UPDATE jobs
        SET state = 'done', finished_at = now(), lease_until = NULL, last_error = NULL
        WHERE id = $1 AND epoch = $2 AND state = 'leased' RETURNING true
    """
    return await conn.fetchval(query, held.id, held.epoch) is not None


async def put_back(conn: Any, held: Held, *, seconds: float, reason: str, counted: bool) -> bool:
    """Let a job wait so many seconds for its next attempt; False when the claim was lost."""
    query = """
        UPDATE jobs
        SET state = 'waiting', run_at = now() + make_interval(secs => $3), last_error = $4,
            attempts = attempts - (NOT $5)::int, owner = NULL, lease_until = NULL
        WHERE id = $1 AND epoch = $2 AND state = 'leased' RETURNING true
    """
    return await conn.fetchval(query, held.id, held.epoch, seconds, reason, counted) is not None


async def fail(conn: Any, held: Held, *, reason: str) -> bool:
    """Give a job up; False when the claim was lost."""
    query = """
        UPDATE jobs SET state = 'failed', finished_at = now(), lease_until = NULL, last_error = $3
        WHERE id = $1 AND epoch = $2 AND state = 'leased' RETURNING true
    """
    return await conn.fetchval(query, held.id, held.epoch, reason) is not None


async def release(conn: Any, owner: str, *, counted: bool) -> int:
    """Give back everything that a worker holds, so that another may take it at once."""
    query = """
        UPDATE jobs SET state = 'waiting', owner = NULL, lease_until = NULL,
               attempts = attempts - (NOT $2)::int
        WHERE owner = $1 AND state = 'leased'
    """
    result: str = await conn.execute(query, owner, counted)
    return int(result.rpartition(" ")[2])


async def bury(conn: Any, room: Sequence[Room]) -> list[str]:
    """Fail what was claimed as often as it may be and never came back; return the types."""
    query = """
        UPDATE jobs j
        SET state = 'failed', finished_at = now(), lease_until = NULL, epoch = epoch + 1,
            last_error = CASE WHEN j.state = 'leased'
                THEN 'gave up after ' || j.attempts || ' attempts: the last one never came back'
                ELSE coalesce(j.last_error, 'no attempt is left') END
        FROM unnest($1::text[], $2::int[]) AS r (type, attempts)
        WHERE j.type = r.type AND j.attempts >= r.attempts
          AND (j.state = 'leased' AND j.lease_until <= now() OR j.state = 'waiting')
        RETURNING j.type
    """
    rows = await conn.fetch(query, [r.type for r in room], [r.attempts for r in room])
    return [row["type"] for row in rows]


async def oldest(conn: Any) -> dict[str, float]:
    """Return, by type, for how many seconds the oldest unfinished job that is due has been."""
    query = """
        SELECT type, extract(epoch FROM greatest(max(
                   now() - CASE WHEN attempts > 1 THEN created_at ELSE run_at END
               ), interval '0'))::float8 AS seconds
        FROM jobs WHERE state IN ('waiting', 'leased') GROUP BY type
    """
    return {row["type"]: row["seconds"] for row in await conn.fetch(query)}


async def count_failed(conn: Any) -> int:
    """Return how many jobs were given up and wait for an operator."""
    total: int = await conn.fetchval("SELECT count(*) FROM jobs WHERE state = 'failed'")
    return total


async def delete_finished(conn: Any, limit: int, *, days: int) -> int:
    """Delete up to so many jobs that ended, well or not, before so many days; return how many."""
    query = """
        DELETE FROM jobs WHERE id IN (
            SELECT id FROM jobs
            WHERE state IN ('done', 'failed') AND finished_at < now() - make_interval(days => $1)
            ORDER BY finished_at LIMIT $2
        )
    """
    result: str = await conn.execute(query, days, limit)
    return int(result.rpartition(" ")[2])


_SHOWN = """
    id, type, lane, state, attempts, owner, lease_until, run_at, last_error, event_id, created_at,
    finished_at
"""
_SORT = "-position"


def _shown(row: Any) -> QueuedJob:
    known = {name: value for name, value in row.items() if name not in ("position", "state")}
    return QueuedJob(state=JobState(row["state"]), **known)


async def list_page(
    conn: Any, window: Window, *, state: JobState | None, type: str | None
) -> Page[QueuedJob]:
    """Return one page of the jobs, the newest first."""
    (before,) = (
        decode_cursor(window.cursor, _SORT, (int,)) if window.cursor is not None else (None,)
    )
    query = f"""
        SELECT {_SHOWN}, position FROM jobs
        WHERE ($1::bigint IS NULL OR position < $1) AND ($2::text IS NULL OR state = $2)
          AND ($3::text IS NULL OR type = $3)
        ORDER BY position DESC LIMIT $4 OFFSET $5
    """  # noqa: S608 - a literal of this module
    rows = await conn.fetch(query, before, state, type, window.limit + 1, window.offset)
    page = Page.cut(rows, window.limit, lambda row: encode_cursor(_SORT, row["position"]))
    return Page([_shown(row) for row in page.items], page.next_cursor)


async def count(conn: Any, *, state: JobState | None, type: str | None) -> int:
    """Return how many jobs there are."""
    query = """
        SELECT count(*) FROM jobs
        WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR type = $2)
    """
    total: int = await conn.fetchval(query, state, type)
    return total


async def get(conn: Any, job_id: UUID, *, lock: bool = False) -> QueuedJob:
    """Read a job; with `lock`, hold its row until the commit."""
    query = f"SELECT {_SHOWN} FROM jobs WHERE id = $1 {'FOR UPDATE' if lock else ''}"  # noqa: S608
    row = await conn.fetchrow(query, job_id)
    if row is None:
        raise NotFound.of("job")
    return _shown(row)


async def requeue(conn: Any, job_id: UUID) -> QueuedJob:
    """Let a job that was given up begin anew, now, behind what its lane holds already."""
    query = f"""
        WITH held AS MATERIALIZED (
            SELECT pg_advisory_xact_lock(hashtextextended(lane, 0)) FROM jobs
            WHERE id = $1 AND lane IS NOT NULL
        )
        UPDATE jobs SET state = 'waiting', attempts = 0, run_at = now(), finished_at = NULL,
               owner = NULL, position = DEFAULT
        FROM (SELECT count(*) FROM held) AS locked
        WHERE id = $1 RETURNING {_SHOWN}
    """  # noqa: S608 - a literal of this module
    try:
        row = await conn.fetchrow(query, job_id)
    except asyncpg.UniqueViolationError as exc:
        raise Conflict(
            "The same work is queued already, as a newer job.", code="E_JOB_QUEUED_AGAIN"
        ) from exc
    return _shown(row)


async def cancel(conn: Any, job_id: UUID, *, reason: str) -> QueuedJob:
    """Give up a job that waits."""
    query = f"""
        UPDATE jobs SET state = 'failed', finished_at = now(), last_error = $2
        WHERE id = $1 AND state = 'waiting' RETURNING {_SHOWN}
    """  # noqa: S608 - a literal of this module
    return _shown(await conn.fetchrow(query, job_id, reason))


async def hasten(conn: Any) -> int:
    """Make every job due that waits for its time; return how many were not due yet."""
    query = "UPDATE jobs SET run_at = now() WHERE state = 'waiting' AND run_at > now() RETURNING id"
    return len(await conn.fetch(query))
