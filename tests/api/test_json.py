"""The strict JSON reader (P-04): by itself, and through a route with a body."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import orjson
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from itdesk.api import payload
from itdesk.api.route import Body, Call, ListQuery, Reply, Route, Who
from itdesk.errors import BadRequest, DeskError, Invalid
from itdesk.model import Priority
from tests.support.json_corpus import GOOD, REFUSED, WRONG
from tests.support.small_desk import Server, SmallDesk, serving

JSON = {"Content-Type": "application/json"}


class Note(Body):
    """Something with one field of every kind."""

    title: Annotated[str, Field(min_length=3, max_length=20)]
    tags: list[str] = []
    size: int = 0
    loud: bool = False
    owner: UUID | None = None
    priority: Priority = Priority.LOW


class NoteQuery(ListQuery):
    """A list's parameters, with one that repeats."""

    tag: list[str] = []
    priority: Priority | None = None


async def echo(call: Call) -> Reply:
    """Return what was understood."""
    return Reply({"body": call.body, "query": call.query})


ROUTES = [
    Route(id="N1", method="POST", path="/notes", handler=echo, who=Who.PUBLIC, tag="n", body=Note),
    Route(
        id="N2",
        method="POST",
        path="/perhaps",
        handler=echo,
        who=Who.PUBLIC,
        tag="n",
        body=Note,
        body_optional=True,
    ),
    Route(
        id="N3",
        method="GET",
        path="/notes",
        handler=echo,
        who=Who.PUBLIC,
        tag="n",
        query=NoteQuery,
    ),
]


@pytest_asyncio.fixture(name="server")
async def _server() -> AsyncIterator[Server]:
    async with serving(SmallDesk(server={"max_body": 700_000}), ROUTES) as server:
        yield server


def _is_error(answer: Any, code: str) -> bool:
    body = answer.json()
    assert set(body) == {"error", "message", "error_code", "details", "request_id"}
    assert body["request_id"] == answer.headers["X-Request-ID"]
    return bool(body["error"] == code)


def test_corpus_is_as_large_as_promised() -> None:
    assert len(REFUSED) + len(WRONG) >= 60


@pytest.mark.parametrize("name", REFUSED)
def test_unreadable_document_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        payload.loads(REFUSED[name])
    assert caught.value.code == "E_BAD_JSON"


@pytest.mark.parametrize("name", GOOD)
def test_readable_document_is_read(name: str) -> None:
    raw, value = GOOD[name]
    read = payload.loads(raw)
    assert value is None or read == value


@pytest.mark.parametrize("name", REFUSED)
async def test_unreadable_body_is_400(server: Server, name: str) -> None:
    answer = await server.ask("POST", "/api/v1/notes", data=REFUSED[name], headers=JSON)
    assert answer.status == 400
    assert _is_error(answer, "E_BAD_JSON")
    assert len(answer.raw) < 1000


@pytest.mark.parametrize("name", WRONG)
async def test_readable_but_wrong_body_is_422(server: Server, name: str) -> None:
    answer = await server.ask("POST", "/api/v1/notes", data=WRONG[name], headers=JSON)
    assert answer.status == 422
    assert _is_error(answer, "E_VALIDATION_ERROR")
    fields = answer.json()["details"]["fields"]
    assert fields and all(len(field["path"]) <= 100 for field in fields)
    assert len(answer.raw) < 20_000


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.just(":"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    )
)
def test_what_json_can_say_is_read_unless_it_holds_nul(value: Any) -> None:
    raw = orjson.dumps(value)
    try:
        assert payload.loads(raw) == value
    except BadRequest as exc:
        assert b"\\u0000" in raw and "NUL" in exc.message


@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.text('a:"\\'), min_size=1
    )
)
def test_any_repeated_key_is_refused(value: dict[str, str]) -> None:
    raw = orjson.dumps(value)
    key = orjson.dumps(next(iter(value)))
    twice = raw[:-1] + b", " + key + b": 1}"
    with pytest.raises(BadRequest, match="twice"):
        payload.loads(twice)


@given(st.binary(max_size=60))
def test_no_bytes_are_more_than_refused(raw: bytes) -> None:
    try:
        payload.loads(raw)
    except DeskError as exc:
        assert exc.status == 400


async def test_all_problems_come_at_once_in_plain_words(server: Server) -> None:
    body = {"title": "ab", "size": "5", "loud": "yes", "owner": "me", "priority": "x", "more": 1}
    answer = await server.ask("POST", "/api/v1/notes", json=body)
    assert answer.status == 422
    assert answer.json()["details"]["fields"] == [
        {"path": "title", "problem": "must have at least 3 characters"},
        {"path": "size", "problem": "must be a whole number"},
        {"path": "loud", "problem": "must be true or false"},
        {"path": "owner", "problem": "must be a UUID"},
        {"path": "priority", "problem": "must be one of 'low', 'medium', 'high' or 'critical'"},
        {"path": "more", "problem": "is not known here"},
    ]
    assert answer.json()["message"] == "title must have at least 3 characters (and 5 more)"


async def test_nested_problem_has_a_dotted_path(server: Server) -> None:
    answer = await server.ask("POST", "/api/v1/notes", json={"title": "abc", "tags": ["a", 7]})
    assert answer.json()["details"]["fields"] == [{"path": "tags.1", "problem": "must be text"}]


async def test_sent_values_are_never_shown_again(server: Server) -> None:
    secret = "hunter2-" * 50
    for body in ({"title": secret}, {"title": "abc", "priority": secret, "size": secret}):
        answer = await server.ask("POST", "/api/v1/notes", json=body)
        assert answer.status == 422
        assert b"hunter2" not in answer.raw


@pytest.mark.parametrize(
    ("declared", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("application/json;charset=UTF-8", 200),
        ("Application/JSON", 200),
        ("application/json; charset=latin-1", 415),
        ("application/problem+json", 415),
        ("text/plain", 415),
        ("text/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
        ("application/jsonx", 415),
    ],
)
async def test_content_type(server: Server, declared: str, status: int) -> None:
    answer = await server.ask(
        "POST", "/api/v1/notes", data=b'{"title": "abc"}', headers={"Content-Type": declared}
    )
    assert answer.status == status


async def test_encoded_body_is_refused(server: Server) -> None:
    headers = {**JSON, "Content-Encoding": "br"}
    answer = await server.ask("POST", "/api/v1/notes", data=b"{}", headers=headers)
    assert answer.status == 415


async def test_optional_body_may_be_left_out_but_not_be_wrong(server: Server) -> None:
    assert (await server.ask("POST", "/api/v1/perhaps")).json()["body"] is None
    answer = await server.ask("POST", "/api/v1/perhaps", data=b"{", headers=JSON)
    assert answer.status == 400


async def test_announced_oversize_is_refused_unread(server: Server) -> None:
    raw = await server.raw(
        b"POST /api/v1/notes HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: 700001\r\nExpect: 100-continue\r\n\r\n",
        until=b"}",
    )
    assert raw.startswith(b"HTTP/1.1 413 ")
    assert b"E_TOO_LARGE" in raw


async def test_unannounced_oversize_is_cut_while_it_streams(server: Server) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(800):
            yield b" " * 1000

    answer = await server.ask("POST", "/api/v1/notes", data=endless(), headers=JSON)
    assert answer.status == 413
    assert _is_error(answer, "E_TOO_LARGE")


async def test_endless_body_is_not_read_to_its_end(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /api/v1/notes HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    answer = asyncio.ensure_future(reader.readuntil(b"}"))
    while not answer.done():
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await asyncio.wait([answer], timeout=0.005)
    assert (await answer).startswith(b"HTTP/1.1 413 ")
    writer.transport.abort()


async def test_body_at_the_limit_is_read(server: Server) -> None:
    raw = b'{"title": "abc"}'
    raw += b" " * (700_000 - len(raw))
    assert (await server.ask("POST", "/api/v1/notes", data=raw, headers=JSON)).status == 200


async def test_body_is_asked_for_when_the_request_is_wanted(server: Server) -> None:
    text = b'{"title": "abc"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /api/v1/notes HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n" % len(text)
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(text)
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_unknown_expectation_is_417(server: Server) -> None:
    answer = await server.ask("POST", "/api/v1/notes", json={}, headers={"Expect": "a pony"})
    assert answer.status == 417


async def test_query_is_read(server: Server) -> None:
    answer = await server.ask("GET", "/api/v1/notes?limit=7&tag=a&tag=b%26c&count=true")
    query = answer.json()["query"]
    assert (query["limit"], query["tag"], query["count"]) == (7, ["a", "b&c"], True)


@pytest.mark.parametrize(
    ("query", "path", "problem"),
    [
        ("nothing=1", "nothing", "is not known here"),
        ("limit=1&limit=2", "limit", "is given more than once"),
        ("limit=0", "limit", "must be at least 1"),
        ("limit=201", "limit", "must be at most 200"),
        ("limit=", "limit", "must be a whole number"),
        ("limit=" + "9" * 5000, "limit", "is too large a number"),
        ("offset=-1", "offset", "must be at least 0"),
        ("count=perhaps", "count", "must be true or false"),
        ("cursor=a%00b", "cursor", "contains a character that is not text"),
        ("a%00b=1", "a\ufffdb", "contains a character that is not text"),
        ("priority=x", "priority", "must be one of 'low', 'medium', 'high' or 'critical'"),
    ],
)
async def test_wrong_query_is_422(server: Server, query: str, path: str, problem: str) -> None:
    answer = await server.ask("GET", f"/api/v1/notes?{query}")
    assert answer.status == 422
    assert {"path": path, "problem": problem} in answer.json()["details"]["fields"]


async def test_query_that_cannot_be_read_is_400(server: Server) -> None:
    for query in ("tag=%ff", "&".join("tag=a" for _ in range(200))):
        answer = await server.raw(
            f"GET /api/v1/notes?{query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        )
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"E_BAD_REQUEST" in answer


def test_problems_are_listed_up_to_a_limit() -> None:
    with pytest.raises(Invalid) as caught:
        payload.parse(Note, WRONG["many keys"])
    details = caught.value.details
    assert len(details["fields"]) == 100
    assert details["more"] == 1901
