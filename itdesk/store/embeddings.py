"""What tickets' texts mean to a model, as plain arrays of numbers: no extension is needed."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen

# So many of the tickets that moved last have their vectors kept up to date; older ones keep theirs.
NEWEST = 5000


@frozen
class Stale:
    """A ticket whose vector is missing or was made from another text than this one."""

    id: UUID
    text: str
    digest: str


# What a vector is made from.
_TEXT = "(t.title || E'\\n' || left(t.description, 4000))"


async def stale(conn: Any, model: str, *, limit: int) -> list[Stale]:
    """Return tickets whose vectors of a model have to be made, the newest first."""
    # The digest decides; the times only say of which tickets it need not be computed. A change
    # that began before the vector was made may have been committed after that.
    query = f"""
        SELECT t.id, {_TEXT}, md5({_TEXT})
        FROM (SELECT id, title, description, updated_at FROM tickets
              ORDER BY updated_at DESC, id DESC LIMIT {NEWEST}) AS t
        LEFT JOIN ticket_embeddings e ON e.ticket_id = t.id AND e.model = $1
        WHERE e.ticket_id IS NULL
           OR e.created_at < t.updated_at + interval '10 minutes' AND e.digest <> md5({_TEXT})
        ORDER BY t.updated_at DESC, t.id DESC LIMIT $2
    """  # noqa: S608 - literals of this module
    return [Stale(*row) for row in await conn.fetch(query, model, limit)]


async def put(
    conn: Any, model: str, made: Sequence[Stale], vectors: Sequence[Sequence[float]]
) -> None:
    """Keep the vectors of tickets that are still there: of length one, or empty for none."""
    query = """
        INSERT INTO ticket_embeddings AS e (ticket_id, model, digest, vector)
        SELECT t.id, $2, $3, $4::real[] FROM tickets t WHERE t.id = $1
        FOR KEY SHARE
        ON CONFLICT (ticket_id) DO UPDATE
        SET model = excluded.model, digest = excluded.digest, vector = excluded.vector,
            created_at = now()
    """
    for one, vector in zip(made, vectors, strict=True):
        await conn.execute(query, one.id, model, one.digest, list(vector))


async def nearness(
    conn: Any, model: str, ticket_id: UUID, others: Sequence[UUID]
) -> dict[UUID, float]:
    """Return the cosines of a ticket's vector and those of others, where both are comparable.

    It is counted here because thousands of numbers for each of many tickets would hold up the loop.
    """
    query = """
        SELECT e.ticket_id, (SELECT sum(n.mine::float8 * n.theirs)
                             FROM unnest(m.vector, e.vector) AS n (mine, theirs)) AS cosine
        FROM ticket_embeddings m JOIN ticket_embeddings e ON e.model = m.model
             AND cardinality(e.vector) = cardinality(m.vector)
        WHERE m.ticket_id = $2 AND m.model = $1 AND m.vector <> '{}'
          AND e.ticket_id = ANY ($3::uuid[])
    """
    rows = await conn.fetch(query, model, ticket_id, list(others))
    return {row["ticket_id"]: row["cosine"] for row in rows}
