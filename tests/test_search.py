"""Searching and saved views over REST, and what nobody may learn who may not read it."""

import asyncio
import re
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.support.daemon import Live, Person


async def results(person: Person, q: str, **more: Any) -> Any:
    params = {"q": q, **more}
    return (await person.get("/tickets/search", params=params)).expect(200)


def found(answer: Any) -> list[str]:
    return [hit["ticket"]["key"] for hit in answer["results"]]


def word() -> str:
    """Return a word that stands in no other ticket: letters only, and an end that is its stem's."""
    return "w" + uuid4().hex.translate(str.maketrans("0123456789", "ghijklmnop")) + "rk"


async def test_a_word_is_found_while_it_is_being_typed(live: Live) -> None:
    """R26: the last word may go on, unless a space ends it; the list finds the same."""
    alice, one = await live.person(), word()
    ticket = await alice.ticket(f"About {one} things")
    for typed in (one, one[:8], one[:20], f"about {one[:8]}", f"things {one}", one.upper()):
        assert found(await results(alice, typed)) == [ticket["key"]], typed
        listed = (await alice.get("/tickets", params={"q": typed})).expect(200)
        assert [row["key"] for row in listed] == [ticket["key"]]
    for typed in (f"{one[:8]} ", f"{one[:8]} things", f'"things {one}"', f"{one} -things"):
        assert found(await results(alice, typed)) == [], typed
    for typed in (f'"about {one}"', f"nothingofthekind or {one}", f"{one} -nothingofthekind"):
        assert found(await results(alice, typed)) == [ticket["key"]], typed


async def test_a_key_is_found_by_its_beginning(live: Live) -> None:
    alice = await live.person()
    project = f"K{uuid4().hex[:6].upper()}"
    (await live.admin.post("/projects", {"key": project, "name": "Keys"})).expect(201)
    keys = [(await alice.ticket("Something", project=project))["key"] for _ in range(11)]
    assert found(await results(alice, f"{project.lower()}-1")) == [keys[10], keys[9], keys[0]]
    assert found(await results(alice, f"{project}-10")) == [keys[9]]
    best = await results(alice, f"{project}-1", sort="relevance")
    assert found(best)[0] == keys[0]


@pytest.mark.parametrize(
    "q",
    [
        "", " ", "the", "the and of", "a", "-", "--", '"', '""', "'", "' OR 1=1 --", "%", "\\", "(",
        "a:*", "a & | b", ":*", "!!!", "<->", "$1", "{0}", "x" * 200, "ñ" * 200, "🙂", "\u202e",
        "-nothingofthekind", "or", "or or or", "TSK-%", "_-_", "../..", "\x02\x03",
    ],
)  # fmt: skip
async def test_whatever_is_typed_is_answered_and_shows_no_more(live: Live, q: str) -> None:
    """S2-62: nobody who has no ticket finds one, and nothing is a server's error."""
    nobody = await live.person()
    answer = await results(nobody, q, facets="true")
    assert answer["results"] == [] and answer["next_cursor"] is None
    assert answer["facets"]["counted"] == 0 and answer["facets"]["exact"] is True
    assert (await nobody.get("/tickets", params={"q": q, "count": "true"})).json == []
    everybody = await live.admin.get("/tickets/search", params={"q": q, "sort": "relevance"})
    everybody.expect(200)


async def test_what_cannot_be_searched_for_is_refused(live: Live) -> None:
    alice = await live.person()
    for params in (
        {"q": "x" * 201}, {"q": "a\0b"}, {"sort": "relevance"}, {"limit": "51"},
        {"facets": "maybe"},
        {"q": "x", "cursor": "nonsense"}, {"q": "x", "unknown": "1"}, {"created_from": "today"},
    ):  # fmt: skip
        (await alice.get("/tickets/search", params=params)).refused(422, "E_VALIDATION_ERROR")
    (await alice.get("/tickets?sort=relevance")).refused(422, "E_VALIDATION_ERROR")


async def test_a_snippet_is_plain_text_with_the_places_of_the_words(live: Live) -> None:
    """Never HTML: what the ticket says is shown as it says it, marks beside it."""
    alice, agent, one = await live.person(), await live.person("agent"), word()
    text = f"<script>alert('{one}')</script> & more \x02 of \U0001f642 {one}ing it"
    ticket = await alice.ticket(f"<b>{one}</b> & co", description=text)
    path = f"/tickets/{ticket['key']}/comments"
    (await alice.post(path, {"body": f"I said <i>{one}</i>"})).expect(201)
    (await agent.post(path, {"body": f"not for her: {one}", "internal": True})).expect(201)
    for person, said in ((alice, "I said"), (agent, "not for her:")):
        [hit] = (await results(person, one))["results"]
        by_field = {snippet["field"]: snippet for snippet in hit["snippets"]}
        assert set(by_field) == {"title", "description", "comment"}
        assert by_field["title"]["text"] == f"<b>{one}</b> & co"
        assert by_field["comment"]["text"].startswith(said)
        for snippet in by_field.values():
            assert snippet["marks"]
            assert not re.search("[\x02\x03]", snippet["text"])
            for start, length in snippet["marks"]:
                assert snippet["text"][start : start + length].lower().startswith(one)
    assert (await results(alice, "", limit=1))["results"] == []


async def test_relevance_puts_the_title_before_the_description(live: Live) -> None:
    """sort=relevance orders the matches by where the words stand; the default is newest first."""
    alice, one = await live.person(), word()
    title = (await alice.ticket(f"{one} in the title"))["key"]
    text = (await alice.ticket("Something else", description=f"there is {one} in it"))["key"]
    assert found(await results(alice, one)) == [text, title]
    best = await results(alice, one, sort="relevance", limit=1)
    assert found(best) == [title]
    rest = await results(alice, one, sort="relevance", limit=1, cursor=best["next_cursor"])
    assert found(rest) == [text] and rest["next_cursor"] is None


async def test_pages_hold_every_match_once(live: Live) -> None:
    """By next_cursor and by Link alike, with filters, in each order."""
    alice, one = await live.person(), word()
    made = [
        await alice.ticket(f"{one} {n}", department="Odd" if n % 2 else "Even") for n in range(7)
    ]
    for sort in ("-created_at", "created_at", "-updated_at", "number", "priority", "relevance"):
        for where in ({}, {"department": "Odd"}):
            keys = [t["key"] for t in made if where == {} or t["department"] == "Odd"]
            seen: list[str] = []
            url = f"/api/v1/tickets/search?q={one}&sort={sort}&limit=2"
            url += "".join(f"&{name}={value}" for name, value in where.items())
            while url:
                page = await alice.call("GET", url)
                seen += found(page.expect(200))
                link = re.match(r"<([^>]+)>", page.headers.get("Link", ""))
                assert (link is None) is (page.json["next_cursor"] is None)
                url = link[1] if link else ""
            assert sorted(seen) == sorted(keys), sort


async def test_facets_count_all_matches_and_name_them(live: Live) -> None:
    agent, one = await live.person("agent"), word()
    for n in range(5):
        ticket = await agent.ticket(
            f"{one} {n}", priority="high" if n < 2 else "low", assignee_ids=[agent.id] if n else []
        )
    (await agent.patch(f"/tickets/{ticket['key']}", {"status": "closed"})).expect(200)
    answer = await results(agent, one, facets="true", limit=2)
    facets = answer["facets"]
    assert (facets["counted"], facets["exact"]) == (5, True)
    assert facets["status"] == [
        {"value": "open", "name": "open", "count": 4},
        {"value": "closed", "name": "closed", "count": 1},
    ]
    assert [(f["value"], f["count"]) for f in facets["priority"]] == [("high", 2), ("low", 3)]
    assert [(f["value"], f["count"]) for f in facets["project"]] == [("TSK", 5)]
    assert facets["assignee"] == [{"value": agent.id, "name": "A agent", "count": 4}]
    narrowed = await results(agent, one, facets="true", priority="high")
    assert [(f["value"], f["count"]) for f in narrowed["facets"]["status"]] == [("open", 2)]
    assert (await results(agent, one))["facets"] is None


# --- what may not be seen -----------------------------------------------------------------------

WAYS = (
    "/tickets?q={q}", "/tickets?q={q}&count=true&sort=relevance", "/tickets/my?q={q}",
    "/tickets/search?q={q}&facets=true", "/tickets/search?q={q}&facets=true&sort=relevance",
    "/tickets/search?facets=true", "/tickets?department={q}", "/tickets?tag={q}",
    "/tickets/search?tag={q}&facets=true", "/tickets", "/tickets/my",
    "/reports/dashboard", "/stats/dashboard", "/recommendations?count=true", "/views",
    "/stats/daily", "/reports/tickets-by-department?format=csv", "/reports/user-activity",
    "/reports/trends",
)  # fmt: skip


async def test_a_canary_in_what_one_may_not_read_shows_nowhere(live: Live) -> None:
    """X16: no list, count, facet, snippet, report, table or recommendation tells of it."""
    alice, mallory, agent = await live.person(), await live.person(), await live.person("agent")
    canary = word()
    foreign = await alice.ticket(
        f"{canary} title", description=f"{canary} text", department=canary, tags=[canary],
        priority="critical",
    )  # fmt: skip
    (await alice.upload(foreign["key"], b"x\n", f"{canary}.txt")).expect(201)
    own = await mallory.ticket("My own harmless ticket")
    path = f"/tickets/{own['key']}/comments"
    (await agent.post(path, {"body": f"{canary} internal", "internal": True})).expect(201)
    (await alice.post("/views", {"name": canary, "query": {"q": canary}})).expect(201)
    conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
    try:
        await conn.execute(
            """INSERT INTO recommendations (type, title, related_tickets, confidence, impact)
               VALUES ('pattern', $1, ARRAY[$2], 50, 'low')""",
            f"{canary} advice", foreign["key"],
        )  # fmt: skip
        await conn.execute(
            """INSERT INTO recommendations (type, title, related_tickets, confidence, impact)
               VALUES ('pattern', 'Both', ARRAY[$1, $2], 50, 'low')""",
            foreign["key"], own["key"],
        )  # fmt: skip
        for way in WAYS:
            answer = await mallory.get(way.format(q=canary))
            told = answer.raw.decode() + str(dict(answer.headers)).replace(way.format(q=canary), "")
            assert canary not in told, way
            assert foreign["key"] not in told and foreign["id"] not in told, way
            if "count=true" in way and "q=" in way:
                assert answer.headers["X-Total-Count"] == "0"
            if "facets=true" in way:
                assert answer.json["facets"]["counted"] == (0 if "{q}" in way else 1)
        advice = (await mallory.get("/recommendations")).expect(200)
        assert [one["related_tickets"] for one in advice] == [[own["key"]]]
        assert (await mallory.get("/reports/dashboard")).json["critical_tickets"] == 0
        # The same questions show it to those who may know: the test looks in the right places.
        blind = {
            way
            for way in WAYS
            if canary not in (await agent.get(way.format(q=canary))).raw.decode()
        }
        assert blind <= {
            "/tickets/my?q={q}", "/tickets/my", "/views", "/stats/daily", "/reports/trends",
            "/reports/tickets-by-department?format=csv", "/reports/user-activity",
            "/recommendations?count=true",
        }  # fmt: skip
        assert f"{canary} advice" in [
            one["title"] for one in (await agent.get("/recommendations?limit=200")).expect(200)
        ]
        both = found(await results(agent, canary))
        assert sorted(both) == sorted([foreign["key"], own["key"]])
        assert [found(await results(alice, canary)), found(await results(mallory, canary))] == [
            [foreign["key"]], [],
        ]  # fmt: skip
    finally:
        await conn.execute("DELETE FROM recommendations")
        await conn.close()


# --- saved views --------------------------------------------------------------------------------


async def test_a_saved_view_is_the_list_that_it_stands_for(live: Live) -> None:
    """Kept in canonical words; its url is each reader's own list."""
    manager, alice = await live.person("manager"), await live.person()
    query: dict[str, Any] = {
             "status": ["DONE", "open", "open"], "severity": ["HIGH"], "sort": "-priority",
             "created_from": "2026-01-31", "reporter_id": alice.id}  # fmt: skip
    body = {"name": f"Hers {word()}", "query": query, "shared": True}
    view = (await manager.post("/views", body)).expect(201)
    assert view["query"] == {
        "status": ["closed", "open"], "priority": ["high"], "sort": "-priority",
        "created_from": "2026-01-31", "reporter_id": alice.id,
    }  # fmt: skip
    ticket = await alice.ticket("Urgent", priority="high")
    for person in (manager, alice):
        listed = (await person.call("GET", view["url"])).expect(200)
        assert [row["key"] for row in listed] == [ticket["key"]]
    hers = (await alice.get(f"/views/{view['id']}")).expect(200)
    assert hers == view and view in (await alice.get("/views")).expect(200)
    changed = await alice.patch(f"/views/{view['id']}", {"name": "Mine now"})
    changed.refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    other = await live.person("manager")
    after = (await other.patch(f"/views/{view['id']}", {"query": {"q": "vpn"}})).expect(200)
    assert after["query"] == {"q": "vpn"} and after["name"] == view["name"]
    (await other.delete(f"/views/{view['id']}")).expect(204)
    (await manager.get(f"/views/{view['id']}")).refused(404, "E_VIEW_NOT_FOUND")


async def test_a_view_is_checked_as_the_list_is(live: Live) -> None:
    alice = await live.person()
    query: Any
    for query in (
        {"status": ["nonsense"]}, {"unknown": 1}, {"sort": "relevance"}, {"limit": 3}, {"q": 5},
        {"tag": ["x"] * 21}, {"assignee_id": "nobody"}, None, [],
    ):  # fmt: skip
        refused = await alice.post("/views", {"name": "Bad", "query": query})
        refused.refused(422, "E_VALIDATION_ERROR")
    shared = {"name": "For all", "query": {}, "shared": True}
    (await alice.post("/views", shared)).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    view = (await alice.post("/views", {"name": "One", "query": {}})).expect(201)
    (await alice.post("/views", {"name": "One", "query": {}})).refused(409, "E_VIEW_NAME_EXISTS")
    (await alice.patch(f"/views/{view['id']}", {})).refused(422, "E_VALIDATION_ERROR")
    mine = await alice.patch(f"/views/{view['id']}", {"shared": True})
    mine.refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    (await alice.get("/views/nonsense")).refused(404, "E_VIEW_NOT_FOUND")


async def test_nobody_keeps_more_views_than_they_may(live: Live) -> None:
    """However many are asked for at once."""
    alice = await live.person()
    asked = [alice.post("/views", {"name": f"View {n}", "query": {}}) for n in range(54)]
    answers = await asyncio.gather(*asked)
    assert sorted(a.status for a in answers) == [201] * 50 + [409] * 4
    assert {a.json["error"] for a in answers if a.status == 409} == {"E_VIEW_TOO_MANY"}
    assert len((await alice.get("/views")).expect(200)) >= 50
