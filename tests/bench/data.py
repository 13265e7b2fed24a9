"""Tickets by the thousand or million, made by PostgreSQL itself, with words of every frequency."""

from dataclasses import dataclass
from random import Random
from uuid import UUID

import asyncpg

# How many tickets a word stands in: every third, one in about sixty, one in a few thousand.
COMMON = ("printer", "network", "please")
_PARTS = (
    "error", "slow", "lost", "broken", "queue", "token", "share", "reset", "proxy", "cable",
    "fan", "dock", "mouse", "driver", "port",
)  # fmt: skip
MIDDLE = tuple(f"{a}{b}" for a in ("disk", "mail", "vpn", "login") for b in _PARTS)
RARE = 4_000


@dataclass(frozen=True)
class Filled:
    """What was filled in: how many tickets, and some of them to ask for."""

    tickets: int
    ids: list[str]

    @staticmethod
    def word(kind: str, dice: Random) -> str:
        """Return a word to search for."""
        if kind == "common":
            return dice.choice(COMMON)
        if kind == "rare":
            return f"serial{dice.randrange(RARE)}"
        return dice.choice(MIDDLE)


_FILL = """
    INSERT INTO tickets (id, key, project_id, title, description, status, priority, category,
                         department, tags, reporter_id, reporter_name, created_at, updated_at)
    SELECT overlay(overlay(gen_random_uuid()::text PLACING '7' FROM 15)
                   PLACING substr(born, 1, 8) || '-' || substr(born, 9) FROM 1)::uuid,
           'TSK-' || (1000000000 + n),
           (SELECT id FROM projects WHERE key = 'TSK'),
           ($3::text[])[1 + n % array_length($3::text[], 1)] || ' in room ' || n % 977,
           'Since this morning ' || ($2::text[])[1 + n % array_length($2::text[], 1)]
               || ' does not work as it did before, somebody has to look at it. '
               || repeat('It was restarted once and showed the same picture again. ', 3)
               || 'The label says serial' || (n::bigint * 7919) % $4::int || '.',
           (ARRAY['open', 'triaged', 'in_progress', 'blocked', 'closed', 'closed', 'closed',
                  'closed'])[1 + n % 8],
           (ARRAY['low', 'medium', 'high', 'critical'])[1 + n % 4],
           (ARRAY['network', 'hardware', 'email', NULL])[1 + n % 4],
           'Department ' || n % 20, ARRAY['tag' || n % 50, 'floor' || n % 7],
           $5, 'Somebody', at, at
    FROM (SELECT n, now() - make_interval(secs => ($1::int - n) * 30.0) AS at
          FROM generate_series($6::int, $7::int) AS n) AS numbered,
         -- As the desk's own ids, they begin with their time: UUIDs of version 7.
         LATERAL (SELECT lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS born
         ) AS time
"""
_STEP = 20_000


async def fill(url: str, tickets: int, reporter: UUID) -> Filled:
    """Add this many tickets, the oldest first, and bring the statistics up to date."""
    conn = await asyncpg.connect(url)
    try:
        for key in ("LIMIT", "PEER"):
            await conn.execute(
                "INSERT INTO projects (key, name) VALUES ($1, 'Bench') ON CONFLICT DO NOTHING", key
            )
        for first in range(1, tickets + 1, _STEP):
            last = min(tickets, first + _STEP - 1)
            words = (list(COMMON), list(MIDDLE), RARE, reporter)
            await conn.execute(_FILL, tickets, *words, first, last)
        await conn.execute(
            """INSERT INTO ticket_assignees (ticket_id, user_id)
               SELECT id, $1 FROM tickets WHERE number % 3 = 0 ON CONFLICT DO NOTHING""",
            reporter,
        )
        await conn.execute("VACUUM ANALYZE")
        # What is left to be written of it is not the requests' that come next.
        await conn.execute("CHECKPOINT")
        rows = await conn.fetch("SELECT id FROM tickets ORDER BY random() LIMIT 5000")
    finally:
        await conn.close()
    return Filled(tickets, [str(row["id"]) for row in rows])
