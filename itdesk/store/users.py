"""People as rows: each function is one statement.

An address is compared in small letters and kept as it was given. Only `Account` holds a password
hash, and no account leaves the services.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any
from uuid import UUID

import asyncpg

from itdesk.errors import Conflict, NotFound
from itdesk.frozen import frozen
from itdesk.model import Assignee, Caller, Change, Event, Role, User
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

_COLUMNS = """
    u.id, u.email, u.name, u.role, u.department, u.avatar_url, u.is_active, u.is_verified,
    u.created_at, u.updated_at
"""


@frozen
class Account:
    """A person with what they sign in by; the epoch changes when earlier proofs become void."""

    user: User
    password_hash: str | None = field(repr=False)
    auth_epoch: int


def _user(row: Any) -> User:
    return User(
        id=row["id"],
        email=row["email"],
        name=row["name"],
        role=Role(row["role"]),
        department=row["department"],
        avatar_url=row["avatar_url"],
        is_active=row["is_active"],
        is_verified=row["is_verified"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _account(row: Any) -> Account:
    return Account(_user(row), row["password_hash"], row["auth_epoch"])


def _email_exists() -> Conflict:
    return Conflict("There is an account with this address already.", code="E_USER_EMAIL_EXISTS")


async def get(conn: Any, user_id: UUID) -> User:
    """Read a person."""
    query = f"SELECT {_COLUMNS} FROM users u WHERE u.id = $1"  # noqa: S608 - a literal above
    row = await conn.fetchrow(query, user_id)
    if row is None:
        raise NotFound.of("user")
    return _user(row)


async def account(conn: Any, user_id: UUID, *, lock: bool = False) -> Account:
    """Read a person's account; with `lock`, hold its row until the transaction ends."""
    query = f"""
        SELECT {_COLUMNS}, u.password_hash, u.auth_epoch FROM users u WHERE u.id = $1
        {"FOR NO KEY UPDATE" if lock else ""}
    """  # noqa: S608 - literals of this module
    row = await conn.fetchrow(query, user_id)
    if row is None:
        raise NotFound.of("user")
    return _account(row)


async def hold(conn: Any, user_id: UUID) -> User:
    """Read a person, and let nothing new refer to them until the transaction ends."""
    query = f"SELECT {_COLUMNS} FROM users u WHERE u.id = $1 FOR UPDATE"  # noqa: S608 - a literal
    row = await conn.fetchrow(query, user_id)
    if row is None:
        raise NotFound.of("user")
    return _user(row)


async def account_of(conn: Any, email: str, *, lock: bool = False) -> Account | None:
    """Read the account with this address in any case, or None; with `lock`, hold its row."""
    query = f"""
        SELECT {_COLUMNS}, u.password_hash, u.auth_epoch FROM users u
        WHERE lower(u.email) = lower($1) {"FOR NO KEY UPDATE" if lock else ""}
    """  # noqa: S608 - literals of this module
    row = await conn.fetchrow(query, email)
    return _account(row) if row is not None else None


async def create(
    conn: Any,
    *,
    id: UUID,
    email: str,
    name: str,
    role: Role,
    department: str | None,
    password_hash: str | None,
    is_verified: bool,
) -> User:
    """Add a person; Conflict when the address is taken in any case."""
    query = f"""
        INSERT INTO users AS u (id, email, name, role, department, password_hash, is_verified)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (lower(email)) DO NOTHING
        RETURNING {_COLUMNS}
    """  # noqa: S608 - a literal above
    row = await conn.fetchrow(query, id, email, name, role, department, password_hash, is_verified)
    if row is None:
        raise _email_exists()
    return _user(row)


_SETTABLE = frozenset(
    {
        "email",
        "name",
        "role",
        "department",
        "avatar_url",
        "is_active",
        "password_hash",
        "is_verified",
    }
)


async def update(
    conn: Any, user_id: UUID, fields: Mapping[str, Any], *, void_proofs: bool = False
) -> User:
    """Set these columns; with `void_proofs`, whatever was proved before counts no more."""
    values: list[Any] = [user_id]
    sets = ["updated_at = now()"]
    for column, value in fields.items():
        if column not in _SETTABLE:
            raise ValueError(f"users.{column} is not set this way")
        values.append(value)
        sets.append(f"{column} = ${len(values)}")
    if void_proofs:
        sets.append("auth_epoch = auth_epoch + 1")
    query = f"""
        UPDATE users u SET {", ".join(sets)} WHERE u.id = $1 RETURNING {_COLUMNS}
    """  # noqa: S608 - columns come from the list above, values are parameters
    try:
        row = await conn.fetchrow(query, *values)
    except asyncpg.UniqueViolationError as exc:
        raise _email_exists() from exc
    if row is None:
        raise NotFound.of("user")
    return _user(row)


async def replace_hash(conn: Any, user_id: UUID, old: str, new: str) -> None:
    """Store another hash of the same password, unless the password was changed meanwhile."""
    query = "UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2"
    await conn.execute(query, user_id, old, new)


async def delete(conn: Any, user_id: UUID) -> None:
    """Remove a person and their sign-in; what they wrote keeps their name."""
    await conn.execute("DELETE FROM users WHERE id = $1", user_id)


async def hold_admins(conn: Any) -> set[UUID]:
    """Return who are the active administrators, and let nobody change that until the commit."""
    query = "SELECT id FROM users WHERE role = $1 AND is_active ORDER BY id FOR NO KEY UPDATE"
    return {row["id"] for row in await conn.fetch(query, Role.ADMIN)}


def _where(role: Role | None, q: str | None) -> tuple[str, list[Any]]:
    sql, values = ["true"], list[Any]()
    if role is not None:
        values.append(role)
        sql.append(f"u.role = ${len(values)}")
    if q:
        values.append(q)
        # Not LIKE: in it, % and _ are orders.
        sql.append(
            f"(strpos(lower(u.name), lower(${len(values)})) > 0"
            f" OR strpos(lower(u.email), lower(${len(values)})) > 0)"
        )
    return " AND ".join(sql), values


async def list_page(conn: Any, *, role: Role | None, q: str | None, window: Window) -> Page[User]:
    """Return one page of the people, in the order of their addresses."""
    where, values = _where(role, q)
    if window.cursor is not None:
        values += decode_cursor(window.cursor, "users", (str,))
        where += f" AND lower(u.email) > ${len(values)}"
    query = f"""
        SELECT {_COLUMNS}, lower(u.email) AS place FROM users u WHERE {where}
        ORDER BY lower(u.email) LIMIT {window.limit + 1:d} OFFSET {window.offset:d}
    """  # noqa: S608 - conditions are literals of this module, values are parameters
    rows = await conn.fetch(query, *values)
    edge = rows[window.limit - 1] if len(rows) > window.limit else None
    return Page(
        [_user(row) for row in rows[: window.limit]],
        encode_cursor("users", edge["place"]) if edge is not None else None,
    )


async def count(conn: Any, *, role: Role | None, q: str | None) -> int:
    """Return how many people a list has in all."""
    where, values = _where(role, q)
    query = f"SELECT count(*) FROM users u WHERE {where}"  # noqa: S608 - literals of this module
    total: int = await conn.fetchval(query, *values)
    return total


async def assignees_page(conn: Any, window: Window) -> Page[Assignee]:
    """Return one page of those who can be given tickets, by name, with their open tickets."""
    # A cursor has no room for the longest names; ids decide among those that begin alike.
    place = "left(lower(u.name), 40)"
    after, values = "", list[Any]([Role.USER])
    if window.cursor is not None:
        values += decode_cursor(window.cursor, "assignees", (str, UUID))
        after = f"AND ({place}, u.id) > ($2, $3)"
    query = f"""
        SELECT u.id, u.name, u.role, u.department, {place} AS place,
               (SELECT count(*) FROM ticket_assignees a JOIN tickets t ON t.id = a.ticket_id
                WHERE a.user_id = u.id AND t.status <> 'closed') AS open_tickets
        FROM users u WHERE u.is_active AND u.role <> $1 {after}
        ORDER BY {place}, u.id LIMIT {window.limit + 1:d} OFFSET {window.offset:d}
    """  # noqa: S608 - literals of this function, values are parameters
    rows = await conn.fetch(query, *values)
    edge = rows[window.limit - 1] if len(rows) > window.limit else None
    return Page(
        [
            Assignee(
                id=row["id"],
                name=row["name"],
                role=Role(row["role"]),
                department=row["department"],
                open_tickets=row["open_tickets"],
            )
            for row in rows[: window.limit]
        ],
        encode_cursor("assignees", edge["place"], edge["id"]) if edge is not None else None,
    )


async def count_assignees(conn: Any) -> int:
    """Return how many people can be given tickets."""
    query = "SELECT count(*) FROM users WHERE is_active AND role <> $1"
    total: int = await conn.fetchval(query, Role.USER)
    return total


async def hold_assigned(conn: Any, user_id: UUID) -> None:
    """Let nobody change the tickets of an assignee until the commit.

    Whoever changes a ticket holds it before its people: so does this, before they are held.
    """
    query = """
        SELECT t.id FROM tickets t
        WHERE t.id IN (SELECT ticket_id FROM ticket_assignees WHERE user_id = $1)
        ORDER BY t.id FOR NO KEY UPDATE OF t
    """
    await conn.execute(query, user_id)


async def unassign_everywhere(conn: Any, caller: Caller, user_id: UUID) -> Sequence[Event]:
    """Take a person off all their tickets; return what the journal has to say, one per ticket."""
    query = """
        WITH gone AS (DELETE FROM ticket_assignees WHERE user_id = $1 RETURNING ticket_id)
        UPDATE tickets t SET version = version + 1, updated_at = now()
        FROM gone WHERE t.id = gone.ticket_id
        RETURNING t.id, t.version, ARRAY(SELECT a.user_id FROM ticket_assignees a
                                         WHERE a.ticket_id = t.id ORDER BY a.position) AS before
    """
    return [
        Event.by(
            caller,
            "ticket.updated",
            ticket_id=row["id"],
            ticket_version=row["version"],
            changes=(
                Change(
                    "assignee_ids",
                    [str(person) for person in row["before"]],
                    [str(person) for person in row["before"] if person != user_id],
                ),
            ),
        )
        for row in await conn.fetch(query, user_id)
    ]


async def least_loaded_agent(conn: Any) -> tuple[UUID, str] | None:
    """Return the active agent with the fewest open tickets, of several the first by name."""
    query = """
        SELECT u.id, u.name FROM users u
        WHERE u.is_active AND u.role = 'agent'
        ORDER BY (SELECT count(*) FROM ticket_assignees a JOIN tickets t ON t.id = a.ticket_id
                  WHERE a.user_id = u.id AND t.status <> 'closed'), lower(u.name), u.id
        LIMIT 1
    """
    row = await conn.fetchrow(query)
    return (row["id"], row["name"]) if row is not None else None
