"""The journal over REST against the real daemon: what auditors get."""

import csv
import io
from typing import Any

import orjson
import pytest

from tests.support.daemon import Live, Person


@pytest.fixture
async def audited(live: Live) -> tuple[Person, Any]:
    """A person and a ticket of theirs with a comment."""
    alice = await live.person(name="=1+1")
    ticket = await alice.ticket("A ticket to audit")
    (await alice.post(f"/tickets/{ticket['key']}/comments", {"body": "hello"})).expect(201)
    return alice, ticket


async def _events(live: Live, query: str, count: int) -> list[Any]:
    """Return the numbered events once there are so many: numbers come after the commit."""
    while True:
        found: list[Any] = (await live.admin.get(f"/events?{query}")).expect(200)
        if len(found) >= count:
            return found


async def test_every_change_is_in_the_journal_in_order(
    live: Live, audited: tuple[Person, Any]
) -> None:
    """I8, O-12: one row a change, numbered; who, what and which request."""
    alice, ticket = audited
    found = await _events(live, f"ticket_id={ticket['id']}&sort=seq", 2)
    assert [event["type"] for event in found] == ["ticket.created", "comment.added"]
    assert [event["ticket_version"] for event in found] == [1, 2]
    assert found[0]["seq"] < found[1]["seq"]
    assert found[0]["actor_id"] == alice.id and found[0]["source"] == "api"
    assert found[0]["request_id"]
    assert await _events(live, f"ticket_id={ticket['id']}&type=comment", 1) == [found[1]]
    assert await _events(live, f"actor_id={alice.id}&type=comment.added", 1) == [found[1]]
    since = f"ticket_id={ticket['id']}&since={found[1]['created_at']}"
    assert await _events(live, since, 1) == [found[1]]


async def test_the_journal_is_paged_by_its_numbers(live: Live, audited: tuple[Person, Any]) -> None:
    """Keyset both ways: the Link walks everything once."""
    _, ticket = audited
    await _events(live, f"ticket_id={ticket['id']}", 2)
    for sort in ("seq", "-seq"):
        path: str | None = f"/api/v1/events?sort={sort}&limit=7"
        numbers: list[int] = []
        while path is not None and len(numbers) < 70:
            answer = await live.admin.call("GET", path)
            numbers += [event["seq"] for event in answer.expect(200)]
            link = answer.headers.get("Link")
            path = link.partition(">")[0][1:] if link else None
        assert numbers == sorted(set(numbers), reverse=sort == "-seq")


async def test_the_export_is_complete_and_harmless(live: Live, audited: tuple[Person, Any]) -> None:
    """JSON lines and CSV: the same rows; no cell that a spreadsheet would run."""
    _, ticket = audited
    found = await _events(live, f"ticket_id={ticket['id']}&sort=seq", 2)
    query = f"ticket_id={ticket['id']}"
    lines = await live.admin.get(f"/events/export?{query}")
    assert [orjson.loads(line) for line in lines.raw.splitlines()] == found
    table = await live.admin.get(f"/events/export?{query}&format=csv")
    assert table.headers["Content-Disposition"] == 'attachment; filename="journal.csv"'
    rows = list(csv.DictReader(io.StringIO(table.raw.decode())))
    assert [int(row["seq"]) for row in rows] == [event["seq"] for event in found]
    assert rows[0]["actor_name"] == "'=1+1"
    assert not [cell for row in rows for cell in row.values() if cell and cell[0] in "=+-@"]


async def test_only_administrators_read_the_journal(live: Live) -> None:
    """The journal shows everything, so it is theirs alone."""
    for role in ("user", "agent", "manager"):
        person = await live.person(role)
        for path in ("/events", "/events/export"):
            (await person.get(path)).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    for wrong in ("type=A", "since=yesterday", "source=x", "limit=0", "cursor=x", "colour=red"):
        (await live.admin.get(f"/events?{wrong}")).refused(422, "E_VALIDATION_ERROR")
