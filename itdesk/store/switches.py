"""Which plugins somebody switched on or off while the desk works: a row each."""

from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen


@frozen
class Switch:
    """What was said of a plugin last: whether it is on, by whom, and the how many-th time."""

    name: str
    enabled: bool
    turn: int
    changed_by: str | None
    changed_at: datetime


async def all_of(conn: Any) -> dict[str, Switch]:
    """Return every switch that was ever used, by plugin; none where there is no schema yet.

    A restore looks at the storage before there is one.
    """
    if await conn.fetchval("SELECT to_regclass('plugin_switches')") is None:
        return {}
    query = """
        SELECT s.name, s.enabled, s.turn, u.name AS changed_by, s.changed_at
        FROM plugin_switches s LEFT JOIN users u ON u.id = s.changed_by
        ORDER BY s.name
    """
    return {row["name"]: Switch(**row) for row in await conn.fetch(query)}


async def turn(conn: Any, name: str, *, enabled: bool, by: UUID | None) -> int | None:
    """Switch a plugin, and return which turn that is; None when it was off and shall be off."""
    query = """
        INSERT INTO plugin_switches AS s (name, enabled, changed_by) VALUES ($1, $2, $3)
        ON CONFLICT (name) DO UPDATE
        SET enabled = $2, turn = s.turn + 1, changed_by = $3, changed_at = now()
        WHERE s.enabled OR $2
        RETURNING turn
    """
    number: int | None = await conn.fetchval(query, name, enabled, by)
    return number
