"""What the desk holds about a person is handed over whole, and their name goes when it shall."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from itdesk.desk.accounts import NewUser
from itdesk.desk.people import ERASED
from itdesk.desk.tickets import NewTicket
from itdesk.errors import Conflict, Forbidden, NotFound
from itdesk.model import SYSTEM, Caller, Role
from tests.support.desk import Bench, bench_on

NAME, EMAIL, OLD = "Ada Lovelace-Byron", "ada.lovelace@example.org", "ada.byron@example.org"


@pytest_asyncio.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


async def ada(bench: Bench) -> Caller:
    """Somebody who did a bit of everything, and had another address and name before."""
    desk = bench.desk
    user = await desk.accounts.create(SYSTEM, NewUser(OLD, "Ada Byron", Role.AGENT))
    me = Caller(user.id, "Ada Byron", user.role, email=OLD)
    ticket = await desk.tickets.create(me, NewTicket("The engine is down"))
    await desk.accounts.update(SYSTEM, user.id, {"email": EMAIL, "name": NAME})
    me = Caller(user.id, NAME, user.role, email=EMAIL)
    await desk.tickets.comment(me, ticket.key, "I looked at it.", internal=False)
    await desk.writing.summarise(me, ticket.key)
    await bench.sql(
        "UPDATE tickets SET ai_recommendations = jsonb_build_array('Ask ' || $2::text)"
        " WHERE id = $1",
        ticket.id,
        NAME,
    )
    await bench.sql(
        "INSERT INTO suggestions (ticket_id, kind, proposal, source)"
        " SELECT $1, kind, 'Said of Ada', 'rules' FROM unnest(ARRAY['reply', 'duplicate_of'])"
        " AS kind",
        ticket.id,
    )
    await bench.upload(me, ticket, b"punched cards", "cards.txt")
    await bench.scan()
    async with desk.db.transaction() as tx:
        await tx.conn.execute(
            "INSERT INTO emails (to_address, subject, body_text, kind, status, user_id)"
            " VALUES ($1, 'For you', 'Dear Ada', 'notification', 'sent', $3),"
            " ($2, 'For you', 'Dear Ada', 'notification', 'sent', NULL),"
            " ('else@example.org', 'Not for you', 'Dear Else', 'notification', 'sent', NULL)",
            OLD.upper(), EMAIL, user.id,
        )  # fmt: skip
    return me


async def everything(bench: Bench) -> str:
    """Return all rows of all tables as one text."""
    async with bench.desk.db.connection() as conn:
        names = [r["relname"] for r in await conn.fetch(
            "SELECT relname FROM pg_class c WHERE relkind = 'r'"
            " AND relnamespace = 'public'::regnamespace")]  # fmt: skip
        texts = [
            await conn.fetchval(f"SELECT string_agg(t::text, E'\\n') FROM {name} t")  # noqa: S608
            for name in names
        ]
    return "\n".join(filter(None, texts))


async def test_an_export_has_all_that_is_known(bench: Bench) -> None:
    """Account, tickets, comments, files with their bytes, journal and mails; no secret."""
    me = await ada(bench)
    found: dict[str, Any] = {}
    async for part in bench.desk.people.export(SYSTEM, str(me.user_id)):
        data = b"".join([chunk async for chunk in part.chunks])
        assert len(data) == part.size
        found[part.name] = json.loads(data) if part.name.endswith(".json") else data
    assert found["account-0001.json"][0]["email"] == EMAIL
    assert "password_hash" not in found["account-0001.json"][0]
    assert [t["title"] for t in found["tickets-0001.json"]] == ["The engine is down"]
    assert found["tickets-0001.json"][0]["ai_recommendations"] == [f"Ask {NAME}"]
    # A summary tells what others said internally.
    assert {s["kind"] for s in found["suggestions-0001.json"]} == {"reply"}
    assert [c["body"] for c in found["comments-0001.json"]] == ["I looked at it."]
    assert len(found["mails-0001.json"]) == 2
    assert {e["type"] for e in found["journal-0001.json"]} >= {"ticket.created", "user.updated"}
    (file,) = [data for name, data in found.items() if name.startswith("files/")]
    assert file == b"punched cards"
    assert set(found["index.json"]["addresses"]) == {OLD, EMAIL}
    assert await bench.sql("SELECT count(*) FROM events WHERE type = 'user.exported'") == 1


async def test_after_an_erasure_the_name_is_nowhere_and_the_work_is_still_there(
    bench: Bench,
) -> None:
    """Not in a ticket, comment, mail or event; the journal keeps that somebody was erased."""
    me = await ada(bench)
    assert me.user_id is not None
    before = await everything(bench)
    assert all(word in before for word in (NAME, EMAIL, OLD.upper(), "Ada Byron"))
    seqs = await bench.sql("SELECT count(*) FROM events")

    assert await bench.desk.people.erase(SYSTEM, me.user_id) > 0
    after = await everything(bench)
    for word in (NAME, EMAIL, OLD, OLD.upper(), "Ada Byron", "Dear Ada"):
        assert word not in after
    assert await bench.sql("SELECT ai_recommendations FROM tickets") is None
    assert "Dear Else" in after and "I looked at it." in after and "The engine is down" in after
    assert await bench.sql("SELECT reporter_name FROM tickets") == ERASED
    assert await bench.sql("SELECT author_name FROM ticket_comments") == ERASED
    told = "SELECT data ->> 'user_id' FROM events WHERE type = 'user.erased'"
    assert await bench.sql(told) == str(me.user_id)
    assert await bench.sql("SELECT count(*) FROM events") == int(str(seqs)) + 1

    assert await bench.desk.people.erase(SYSTEM, me.user_id) == 0
    assert await bench.sql("SELECT count(*) FROM events WHERE type = 'user.erased'") == 1


async def test_who_was_deleted_before_can_still_be_erased(bench: Bench) -> None:
    """R24 keeps the name on history; the id is enough to take it away later."""
    me = await ada(bench)
    assert me.user_id is not None
    await bench.desk.accounts.delete(SYSTEM, me.user_id)
    assert NAME in await everything(bench)
    await bench.desk.people.erase(SYSTEM, me.user_id)
    after = await everything(bench)
    assert NAME not in after and "Ada Byron" not in after
    assert await bench.sql("SELECT reporter_name FROM tickets") == ERASED
    assert await bench.sql("SELECT author_name FROM ticket_comments") == ERASED


async def test_neither_the_last_administrator_nor_oneself_nor_nobody_is_erased(
    bench: Bench,
) -> None:
    """And only administrators may do it at all."""
    boss, other = await bench.person(Role.ADMIN), await bench.person()
    assert boss.user_id is not None and other.user_id is not None
    with pytest.raises(Conflict, match="last active administrator"):
        await bench.desk.people.erase(SYSTEM, boss.user_id)
    with pytest.raises(Conflict, match="themselves"):
        await bench.desk.people.erase(boss, boss.user_id)
    with pytest.raises(Forbidden):
        await bench.desk.people.erase(other, boss.user_id)
    for ref in ("nobody", "00000000-0000-7000-8000-00000000dead"):
        with pytest.raises(NotFound):
            await bench.desk.people.erase(boss, ref)


async def test_the_journal_lets_names_go_and_nothing_else(bench: Bench) -> None:
    """The exception is guarded: asked for in the transaction, and only where names can stand."""
    await ada(bench)
    async with bench.desk.db.connection() as conn:
        with pytest.raises(asyncpg.RestrictViolationError):
            await conn.execute("UPDATE events SET actor_name = 'x'")
        for change in (
            "SET data = data || '{\"more\": 1}'",
            "SET data = '{}' WHERE data <> '{}'",
            "SET changes = '[]' WHERE changes <> '[]'",
            """SET changes = '[{"field": "role", "old": 1, "new": 2}]' WHERE changes <> '[]'""",
            "SET type = 'x'",
            "SET created_at = now()",
            "SET actor_id = NULL",
        ):
            with pytest.raises(asyncpg.RestrictViolationError):
                async with conn.transaction():
                    await conn.execute("SET LOCAL itdesk.erase_person = 'on'")
                    await conn.execute(f"UPDATE events {change}")
        with pytest.raises(asyncpg.RestrictViolationError):
            async with conn.transaction():
                await conn.execute("SET LOCAL itdesk.erase_person = 'on'")
                await conn.execute("DELETE FROM events")
