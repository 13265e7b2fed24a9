"""Tickets over REST against the real daemon: lifecycle, scope, lists, history, comments."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from itdesk.model import TRANSITIONS, Status
from itdesk.store.paging import encode_cursor
from tests.support.daemon import Live, Person

WAYS: dict[str, list[str]] = {
    "open": [],
    "triaged": ["triaged"],
    "in_progress": ["in_progress"],
    "blocked": ["in_progress", "blocked"],
    "closed": ["closed"],
}


@pytest.fixture
async def alice(live: Live) -> Person:
    """Somebody who asks for help."""
    return await live.person()


@pytest.fixture
async def agent(live: Live) -> Person:
    """Somebody who helps."""
    return await live.person("agent")


async def _keys(person: Person, query: str) -> list[str]:
    return [ticket["key"] for ticket in (await person.get(f"/tickets?{query}")).expect(200)]


async def _moved(agent: Person, ticket: Any, status: str) -> None:
    for step in WAYS[status]:
        (await agent.patch(f"/tickets/{ticket['key']}", {"status": step})).expect(200)


async def test_a_new_ticket_is_open_numbered_and_the_callers(alice: Person) -> None:
    """S2-26, S3-23, S2-36, S0-29: defaults, key, severity as an alias, tags in order, a number."""
    made = await alice.post(
        "/tickets", {"title": "  No mail  ", "severity": "CRITICAL", "tags": ["b", "a", "B"]}
    )
    ticket = made.expect(201)
    assert ticket["status"] == "open" and ticket["priority"] == "critical"
    assert ticket["reporter_id"] == alice.id and ticket["assignee_ids"] == []
    assert ticket["title"] == "No mail" and ticket["tags"] == ["b", "a"]
    assert ticket["key"].startswith("TSK-") and int(ticket["key"][4:]) >= 1001
    assert ticket["version"] == 1 and made.headers["ETag"] == '"1"'
    assert ticket["created_at"].endswith("Z")
    assert made.headers["Location"] == f"/api/v1/tickets/{ticket['id']}"
    plain = await alice.ticket("Another one")
    assert plain["priority"] == "medium" and plain["category"] is None


async def test_a_ticket_is_found_by_id_key_and_number(alice: Person) -> None:
    """S0-29, S3-25, S3-28: the three names give the same object, lower case included."""
    ticket = await alice.ticket()
    for name in (ticket["id"], ticket["key"], ticket["key"].lower(), ticket["number"]):
        assert (await alice.get(f"/tickets/{name}")).expect(200) == ticket
    by_key = await alice.get(f"/tickets/key/{ticket['key'].lower()}")
    assert by_key.expect(200) == ticket
    for name in ("TSK-999999999", "0", "00000000-0000-0000-0000-000000000000", "nonsense", "%20"):
        (await alice.get(f"/tickets/{name}")).refused(404, "E_TICKET_NOT_FOUND")
    (await alice.get("/tickets/key/TSK-999999999")).refused(404, "E_TICKET_NOT_FOUND")


async def test_every_wrong_field_is_named_at_once_and_nothing_is_written(alice: Person) -> None:
    """Bad input gets one clear error: all problems, unknown fields included."""
    before = (await alice.get("/tickets/my?count=true&limit=1")).headers["X-Total-Count"]
    bad = {"title": "no", "priority": "urgent", "tags": [""], "colour": "red", "assignee_ids": [1]}
    details = (await alice.post("/tickets", bad)).refused(422, "E_VALIDATION_ERROR")
    paths = {field["path"].split(".")[0] for field in details["fields"]}
    assert paths == set(bad)
    after = (await alice.get("/tickets/my?count=true&limit=1")).headers["X-Total-Count"]
    assert after == before


async def test_an_unknown_assignee_or_project_is_refused(agent: Person, alice: Person) -> None:
    """S3-23: E_TICKET_INVALID_ASSIGNEE, also for people who are no agents."""
    nobody = "00000000-0000-7000-8000-000000000000"
    for person in (nobody, alice.id):
        made = await agent.post("/tickets", {"title": "For whom", "assignee_ids": [person]})
        made.refused(400, "E_TICKET_INVALID_ASSIGNEE")
    made = await agent.post("/tickets", {"title": "Where to", "project": "NOSUCH"})
    made.refused(400, "E_TICKET_INVALID_PROJECT")


@pytest.mark.parametrize("start", list(Status))
async def test_a_ticket_moves_along_the_lifecycle_and_no_other_way(
    agent: Person, start: Status
) -> None:
    """S3-57 to S3-60, S3-04: every transition of the table, every other refused by name."""
    for wanted in Status:
        ticket = await agent.ticket(f"From {start} to {wanted}")
        await _moved(agent, ticket, start)
        before = (await agent.get(f"/tickets/{ticket['key']}")).expect(200)
        moved = await agent.patch(f"/tickets/{ticket['key']}", {"status": wanted})
        if wanted == start:
            assert moved.expect(200) == before
        elif wanted in TRANSITIONS[start]:
            after = moved.expect(200)
            assert after["status"] == wanted and after["version"] == before["version"] + 1
            assert (after["closed_at"] is not None) == (wanted is Status.CLOSED)
        else:
            details = moved.refused(400, "E_TICKET_INVALID_STATUS_TRANSITION")
            assert details == {"from": start, "to": wanted, "allowed": list(TRANSITIONS[start])}
            assert (await agent.get(f"/tickets/{ticket['key']}")).expect(200) == before


async def test_only_an_administrator_forces_a_status(live: Live, agent: Person) -> None:
    """An admin with force=true passes the check; history still tells."""
    ticket = await agent.ticket()
    jump = {"status": "blocked", "force": True}
    refused = await agent.patch(f"/tickets/{ticket['key']}", jump)
    refused.refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    assert (await live.admin.patch(f"/tickets/{ticket['key']}", jump)).expect(200)[
        "status"
    ] == "blocked"
    history = (await agent.get(f"/tickets/{ticket['key']}/history")).expect(200)
    assert (history[-1]["old_value"], history[-1]["new_value"]) == ("open", "blocked")


async def test_the_words_of_other_desks_are_understood(agent: Person) -> None:
    """Section 1: DONE and resolved close, waiting blocks, MED is medium; answers are canonical."""
    ticket = await agent.ticket(priority="MED", labels=["x"])
    assert ticket["priority"] == "medium" and ticket["tags"] == ["x"]
    path = f"/tickets/{ticket['key']}"
    assert (await agent.patch(path, {"status": "IN_PROGRESS"})).expect(200)["status"] == (
        "in_progress"
    )
    assert (await agent.patch(path, {"status": "waiting"})).expect(200)["status"] == "blocked"
    assert (await agent.patch(path, {"status": "Open"})).expect(200)["status"] == "open"
    assert (await agent.patch(path, {"status": "DONE"})).expect(200)["status"] == "closed"


async def test_a_strangers_ticket_does_not_exist(live: Live, alice: Person) -> None:
    """S2-25, S2-27, S2-45, S2-46, S3-26, X16: unlisted, unreadable, unwritable, like a missing."""
    mallory = await live.person()
    ticket = await alice.ticket("A secret of Alice's")
    missing = "00000000-0000-7000-8000-000000000000"
    asked: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("PATCH", "", {"title": "Mine now"}),
        ("GET", "/history", None),
        ("GET", "/comments", None),
        ("POST", "/comments", {"body": "hello"}),
        ("GET", "/attachments", None),
    ]
    for method, rest, body in asked:
        answers = [
            await mallory.call(method, f"/api/v1/tickets/{name}{rest}", json=body)
            for name in (ticket["id"], missing)
        ]
        for answer in answers:
            answer.refused(404, "E_TICKET_NOT_FOUND")
        same = [{k: v for k, v in a.json.items() if k != "request_id"} for a in answers]
        assert same[0] == same[1]
    assert ticket["key"] not in await _keys(mallory, "limit=200")
    assert await _keys(mallory, "q=Alice") == []
    listed = await mallory.get("/tickets?count=true")
    assert listed.headers["X-Total-Count"] == "0"


async def test_a_user_edits_an_own_ticket_but_does_not_triage(
    live: Live, alice: Person, agent: Person
) -> None:
    """S2-28, S2-46: title, description, tags, close and reopen; all else 403 naming the field."""
    ticket = await alice.ticket()
    path = f"/tickets/{ticket['key']}"
    (await alice.patch(path, {"title": "A better title", "tags": ["vpn"]})).expect(200)
    forbidden: dict[str, Any] = {
        "assignee_ids": [agent.id],
        "priority": "critical",
        "category": "network",
        "department": "Board",
        "project": "TSK",
        "resolution": "none",
        "status": "triaged",
    }
    for field, value in forbidden.items():
        details = (await alice.patch(path, {field: value})).refused(
            403, "E_AUTH_INSUFFICIENT_PERMISSIONS"
        )
        assert details == {"field": field}
    assert (await alice.patch(path, {"status": "closed"})).expect(200)["closed_at"]
    assert (await alice.patch(path, {"status": "open"})).expect(200)["closed_at"] is None
    made = await alice.post("/tickets", {"title": "For her", "assignee_ids": [agent.id]})
    made.refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")


async def test_an_agent_works_on_any_ticket_but_does_not_delete(
    live: Live, alice: Person, agent: Person
) -> None:
    """S2-42, S2-43, S2-44, S2-29, S2-40: triage, assign, edit; deletion is the administrators'."""
    ticket = await alice.ticket()
    path = f"/tickets/{ticket['key']}"
    change = {"status": "triaged", "assignee_id": agent.id, "title": "Triaged title"}
    after = (await agent.patch(path, change)).expect(200)
    assert after["assignee_id"] == agent.id and after["assignee_ids"] == [agent.id]
    assert after["first_action_at"] is not None
    for person in (agent, await live.person("manager"), alice):
        (await person.delete(path)).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    assert (await live.admin.delete(path)).status == 204
    for rest in ("", "/history", "/comments"):
        (await live.admin.get(path + rest)).refused(404, "E_TICKET_NOT_FOUND")


async def test_assignees_are_people_of_the_desk(live: Live, agent: Person, alice: Person) -> None:
    """S4-47: active agents, managers and admins, with their open tickets."""
    listed = (await alice.get("/assignees?limit=200")).expect(200)
    roles = {person["id"]: person["role"] for person in listed}
    assert roles[agent.id] == "agent" and alice.id not in roles
    assert set(roles.values()) <= {"agent", "manager", "admin"}
    await agent.ticket(assignee_ids=[agent.id])
    again = (await alice.get("/assignees?limit=200")).expect(200)
    assert next(p for p in again if p["id"] == agent.id)["open_tickets"] == 1


async def test_history_tells_who_changed_what_when(alice: Person, agent: Person) -> None:
    """S3-27: created, then one line a change with old and new value, oldest first."""
    ticket = await alice.ticket()
    path = f"/tickets/{ticket['key']}"
    (await agent.patch(path, {"status": "triaged", "priority": "high"})).expect(200)
    (await agent.patch(path, {"assignee_ids": [agent.id]})).expect(200)
    lines = (await alice.get(f"{path}/history")).expect(200)
    told = [(line["action"], line["old_value"], line["new_value"]) for line in lines]
    assert told == [
        ("created", None, "open"),
        ("updated_status", "open", "triaged"),
        ("updated_priority", "medium", "high"),
        ("updated_assignee_ids", "", agent.id),
    ]
    assert lines[0]["user_id"] == alice.id and lines[1]["user_id"] == agent.id
    assert lines[1]["user_name"] == "A agent" and lines[0]["created_at"].endswith("Z")
    assert [line["created_at"] for line in lines] == sorted(line["created_at"] for line in lines)


async def test_every_accepted_write_is_one_version(alice: Person, agent: Person) -> None:
    """Section 9: a write raises the version by one, a no-op by none."""
    ticket = await alice.ticket()
    path = f"/tickets/{ticket['key']}"
    same = await agent.patch(path, {"title": ticket["title"], "tags": []})
    assert same.expect(200)["version"] == 1 and same.headers["ETag"] == '"1"'
    (await alice.post(f"{path}/comments", {"body": "Anything new?"})).expect(201)
    (await agent.patch(path, {"title": "Changed", "priority": "low"})).expect(200)
    (await alice.upload(ticket["key"], b"bytes")).expect(201)
    version = (await alice.get(path)).expect(200)["version"]
    assert version in (4, 5)  # 5 once the scan's verdict is written
    assert len((await alice.get(f"{path}/history")).expect(200)) >= 5


async def test_a_stale_if_match_is_refused_with_the_current_ticket(alice: Person) -> None:
    """R-06: 412 carries the ticket as it is; nothing is overwritten."""
    ticket = await alice.ticket()
    path = f"/tickets/{ticket['key']}"
    fresh = {"If-Match": '"1"'}
    (await alice.patch(path, {"title": "First change"}, headers=fresh)).expect(200)
    stale = await alice.patch(path, {"title": "Second change"}, headers=fresh)
    details = stale.refused(412, "E_TICKET_VERSION_MISMATCH")
    assert details["current"]["title"] == "First change" and details["current"]["version"] == 2
    anyhow = await alice.patch(path, {"title": "Third change"}, headers={"If-Match": "*"})
    assert anyhow.expect(200)["version"] == 3


async def test_no_update_is_lost_under_contention(live: Live, agent: Person) -> None:
    """R-06: 50 clients append to 20 tickets under If-Match; each acknowledged change is kept."""
    tickets = [await agent.ticket(f"Contended {n}") for n in range(20)]
    done: dict[str, list[str]] = {ticket["key"]: [] for ticket in tickets}

    async def client(name: int) -> None:
        for turn in range(3):
            key = tickets[(name * 7 + turn) % len(tickets)]["key"]
            for _ in range(50):
                now = (await agent.get(f"/tickets/{key}")).expect(200)
                tag = f"c{name}-{turn}"
                match = {"If-Match": f'"{now["version"]}"'}
                wanted = {"description": f"{now['description']} {tag}"}
                answer = await agent.patch(f"/tickets/{key}", wanted, headers=match)
                if answer.status == 200:
                    done[key].append(tag)
                    break
                answer.refused(412, "E_TICKET_VERSION_MISMATCH")

    async with asyncio.TaskGroup() as group:
        for name in range(50):
            group.create_task(client(name))
    assert sum(map(len, done.values())) == 150
    for key, tags in done.items():
        ticket = (await agent.get(f"/tickets/{key}")).expect(200)
        assert ticket["description"].split() == tags
        assert ticket["version"] == 1 + len(tags)


async def test_internal_comments_are_for_agents_only(alice: Person, agent: Person) -> None:
    """Internal: written and seen by agents; not in a user's list, history, count or search."""
    ticket = await alice.ticket()
    path = f"/tickets/{ticket['key']}"
    (await agent.post(f"{path}/comments", {"body": "Try another cable."})).expect(201)
    secret = {"body": "The user unplugged xyzzyplugh again.", "internal": True}
    (await agent.post(f"{path}/comments", secret)).expect(201)
    (await alice.post(f"{path}/comments", secret)).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    seen = await alice.get(f"{path}/comments?count=true")
    assert [c["body"] for c in seen.expect(200)] == ["Try another cable."]
    assert seen.headers["X-Total-Count"] == "1"
    assert len((await agent.get(f"{path}/comments")).expect(200)) == 2
    lines = (await alice.get(f"{path}/history?count=true")).expect(200)
    assert [line["action"] for line in lines] == ["created", "comment_added"]
    assert b"xyzzyplugh" not in (await alice.get(f"{path}/history")).raw
    assert await _keys(alice, "q=xyzzyplugh") == []
    assert await _keys(agent, "q=xyzzyplugh") == [ticket["key"]]


async def test_nobody_answers_over_somebodys_head(live: Live, alice: Person, agent: Person) -> None:
    """No double reply: 409 shows what was said since; nothing is written; force overrides."""
    ticket = await alice.ticket()
    path = f"/tickets/{ticket['key']}/comments"
    other = await live.person("agent")
    answer = {"body": "Restart the router.", "last_seen": 1}
    (await agent.post(path, {"body": "Only we read this.", "internal": True})).expect(201)
    (await other.post(path, {"body": "I have restarted it.", "last_seen": 1})).expect(201)
    (await other.patch(f"/tickets/{ticket['key']}", {"status": "closed"})).expect(200)
    details = (await agent.post(path, answer)).refused(409, "E_TICKET_ANSWERED_MEANWHILE")
    assert [(new["version"], new["body"], new["new_status"]) for new in details["newer"]] == [
        (3, "I have restarted it.", None),
        (4, None, "closed"),
    ]
    assert details["version"] == 4
    assert len((await agent.get(path)).expect(200)) == 2
    (await agent.post(path, {**answer, "last_seen": 4})).expect(201)
    (await agent.post(path, {**answer, "force": True})).expect(201)
    (await agent.post(path, {**answer, "last_seen": 99})).refused(422, "E_VALIDATION_ERROR")
    nowhere = {"epoch": "00000000-0000-0000-0000-000000000000", "seq": 1}
    (await agent.post(path, {**answer, "last_seen": nowhere})).refused(422, "E_VALIDATION_ERROR")


async def test_of_two_answers_at_once_one_is_refused(live: Live, alice: Person) -> None:
    """The ticket is held while it is looked at: 16 agents answer the same version, one speaks."""
    ticket = await alice.ticket()
    agents = [await live.person("agent") for _ in range(16)]
    body = {"body": "On my way.", "last_seen": 1}
    async with asyncio.TaskGroup() as group:
        said = [
            group.create_task(agent.post(f"/tickets/{ticket['key']}/comments", body))
            for agent in agents
        ]
    assert sorted(task.result().status for task in said) == [201] + [409] * 15
    assert len((await alice.get(f"/tickets/{ticket['key']}/comments")).expect(200)) == 1


async def test_each_filter_narrows_alone_and_together(live: Live, agent: Person) -> None:
    """S3-22, S2-25, S2-41: every filter of the list; an unknown value is 422."""
    bob = await live.person()
    one = await bob.ticket("Filter one", tags=["alpha", "beta"], department="Attic")
    two = await bob.ticket("Filter two", tags=["alpha"], priority="high")
    change = {"category": "network", "assignee_ids": [agent.id], "status": "triaged"}
    (await agent.patch(f"/tickets/{two['key']}", change)).expect(200)
    mine = f"reporter_id={bob.id}&"
    found = {
        "": {one["key"], two["key"]},
        "status=open": {one["key"]},
        "status=open&status=triaged": {one["key"], two["key"]},
        "priority=high": {two["key"]},
        "severity=HIGH": {two["key"]},
        "category=network": {two["key"]},
        "department=Attic": {one["key"]},
        "project=TSK": {one["key"], two["key"]},
        "project=NOSUCH": set(),
        f"assignee_id={agent.id}": {two["key"]},
        "tag=alpha": {one["key"], two["key"]},
        "tag=alpha&tag=beta": {one["key"]},
        "q=filter": {one["key"], two["key"]},
        "q=filter&tag=beta&status=open": {one["key"]},
        "status=closed": set(),
    }
    for query, keys in found.items():
        assert set(await _keys(agent, mine + query)) == keys, query
    for wrong in ("status=lost", "priority=9", "colour=red", "limit=0", "limit=201", "sort=title",
                  "assignee_id=me", "cursor=x", "status=open&limit=x"):  # fmt: skip
        (await agent.get(f"/tickets?{wrong}")).refused(422, "E_VALIDATION_ERROR")


async def test_own_tickets_are_those_reported_or_assigned(live: Live, agent: Person) -> None:
    """S3-24: GET /tickets/my."""
    bob = await live.person()
    reported = await agent.ticket("Mine by report")
    assigned = await bob.ticket("Mine by assignment")
    await bob.ticket("Not mine")
    (await agent.patch(f"/tickets/{assigned['key']}", {"assignee_id": agent.id})).expect(200)
    mine = (await agent.get("/tickets/my")).expect(200)
    assert {ticket["key"] for ticket in mine} == {reported["key"], assigned["key"]}


async def test_full_text_finds_title_description_key_tag_and_comment(alice: Person) -> None:
    """R26 q: words, phrases, exclusion, stems; injection text finds nothing (S2-62)."""
    ticket = await alice.ticket("Quokka escapes", description="A wombat's burrow", tags=["emu"])
    (await alice.post(f"/tickets/{ticket['key']}/comments", {"body": "saw a bilby"})).expect(201)
    for words in ("quokka", "wombats", "bilby", "emu", ticket["key"], ticket["key"].lower(),
                  '"quokka escapes"', "quokka -platypus"):  # fmt: skip
        found = await alice.get("/tickets", params={"q": words})
        assert [t["key"] for t in found.expect(200)] == [ticket["key"]], words
    for words in ("' OR 1=1 --", "quokka -wombat", '"escapes quokka"', "%", "\\", ":*", "!!(("):
        found = await alice.get("/tickets", params={"q": words})
        assert found.expect(200) == [] or words in ("%", "\\", ":*", "!!((")


@pytest.mark.parametrize("sort", ["created_at", "updated_at", "priority", "status", "number"])
async def test_paging_by_cursor_visits_everything_once_in_order(
    live: Live, agent: Person, sort: str
) -> None:
    """Keyset: the Link header walks the whole list, in both directions, without gap or repeat."""
    bob = await live.person()
    made = []
    for number in range(9):
        priority = ("low", "critical", "medium")[number % 3]
        made.append(await bob.ticket(f"Page {number}", priority=priority))
    (await agent.patch(f"/tickets/{made[4]['key']}", {"status": "triaged"})).expect(200)
    for direction in ("", "-"):
        path: str | None = f"/api/v1/tickets?sort={direction}{sort}&limit=2"
        walked: list[Any] = []
        while path is not None:
            answer = await bob.call("GET", path)
            walked += answer.expect(200)
            link = answer.headers.get("Link")
            path = link.partition(">")[0][1:] if link else None
            assert len(walked) <= 9
        whole = (await bob.get(f"/tickets?sort={direction}{sort}&limit=200")).expect(200)
        assert [t["key"] for t in walked] == [t["key"] for t in whole]
        assert len({t["key"] for t in walked}) == 9
        rank = {"low": 0, "medium": 1, "high": 2, "critical": 3, "open": 0, "triaged": 1}
        values = [rank.get(t[sort], t[sort]) for t in walked]
        assert values == sorted(values, reverse=direction == "-")


async def test_a_cursor_of_another_order_or_edited_is_refused(live: Live) -> None:
    """S-27: a cursor is not a way into the statement."""
    bob = await live.person()
    for number in range(3):
        await bob.ticket(f"Cursor {number}")
    link = (await bob.get("/tickets?limit=1")).headers["Link"]
    cursor = link.partition("cursor=")[2].partition(">")[0].partition("&")[0]
    (await bob.get(f"/tickets?limit=1&cursor={cursor}")).expect(200)
    huge = encode_cursor("priority", 2**62, UUID(int=1))
    assert (await bob.get(f"/tickets?sort=priority&cursor={huge}")).expect(200) == []
    ticket = (await bob.get("/tickets")).expect(200)[0]["key"]
    huge = encode_cursor("version", 2**62, 2**62)
    assert (await bob.get(f"/tickets/{ticket}/history?cursor={huge}")).expect(200) == []
    for wrong in (f"sort=priority&cursor={cursor}", f"cursor={cursor[:-2]}", "cursor=" + "A" * 500):
        (await bob.get(f"/tickets?{wrong}")).refused(422, "E_VALIDATION_ERROR")


async def test_numbers_are_taken_without_a_race(live: Live, agent: Person) -> None:
    """Parallel creates in one project get consecutive keys, none twice."""
    manager = await live.person("manager")
    (await manager.post("/projects", {"key": "RACE", "name": "Race"})).expect(201)
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(agent.ticket(f"R {n}", project="RACE")) for n in range(40)]
    keys = sorted(int(task.result()["key"].removeprefix("RACE-")) for task in made)
    assert keys == list(range(1, 41))


async def test_a_ticket_moves_to_another_project_under_a_new_key(live: Live, agent: Person) -> None:
    """Agents move tickets; the key follows the project, the number stays."""
    manager = await live.person("manager")
    (await manager.post("/projects", {"key": "MOVE", "name": "Move"})).expect(201)
    ticket = await agent.ticket()
    moved = (await agent.patch(f"/tickets/{ticket['id']}", {"project": "MOVE"})).expect(200)
    assert moved["key"] == "MOVE-1" and moved["number"] == ticket["number"]
    assert (await agent.get("/tickets/MOVE-1")).expect(200)["id"] == ticket["id"]
    lines = (await agent.get(f"/tickets/{ticket['id']}/history")).expect(200)
    assert {line["action"] for line in lines} == {"created", "updated_key", "updated_project"}


async def test_quotes_and_markup_come_back_as_they_were_sent(alice: Person) -> None:
    """S2-62: text is data."""
    text = "Robert'); DROP TABLE tickets;-- <b>\"&\\ \u2028 ключ 😀"
    ticket = await alice.ticket(text.replace("\u2028", ""), description=text)
    again = (await alice.get(f"/tickets/{ticket['key']}")).expect(200)
    assert again["description"] == text


async def test_aliases_answer_as_the_canonical_routes(live: Live, agent: Person) -> None:
    """S4-45, S2-21, S2-25 to S2-29: /api/..., /api/v1/issues, /users/me and the rest."""
    ticket = await agent.ticket()
    for path, twin in (
        (f"/api/tickets/{ticket['key']}", f"/api/v1/tickets/{ticket['key']}"),
        (f"/api/v1/issues/{ticket['key']}", f"/api/v1/tickets/{ticket['key']}"),
        ("/api/v1/users/me", "/api/v1/auth/me"),
        ("/api/users/assignees", "/api/v1/assignees"),
        ("/api/assignees", "/api/v1/assignees"),
    ):
        assert (await agent.call("GET", path)).expect(200) == (
            await agent.call("GET", twin)
        ).expect(200), path
    made = await agent.call("POST", "/api/v1/issues/", json={"title": "By another name"})
    assert made.expect(201)["status"] == "open"
