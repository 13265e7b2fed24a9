"""The OpenAPI document says what the table of routes says, and its pages need no internet."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from itdesk.api import ROUTES
from itdesk.api.openapi import Document, document, routes_table
from itdesk.api.route import Who
from tests.support.small_desk import Server, SmallDesk, serving


@pytest.fixture(name="spec", scope="module")
def _spec() -> Any:
    return document(ROUTES, "itdesk_access")


@pytest_asyncio.fixture(name="server")
async def _server() -> AsyncIterator[Server]:
    async with serving(SmallDesk(), ROUTES) as server:
        yield server


def operations(spec: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def walk(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            yield from walk(inner)


def resolve(spec: Any, reference: str) -> Any:
    assert reference.startswith("#/components/"), reference
    target = spec
    for part in reference.removeprefix("#/").split("/"):
        target = target[part]
    return target


async def test_however_many_ask_first_the_document_is_made_once() -> None:
    """P-01: it takes a processor for a second, and anybody may ask for it."""
    made = Document(ROUTES[:20], "itdesk_access")
    found = await asyncio.gather(*(made.content() for _ in range(20)))
    assert all(one is found[0] for one in found)


def test_every_route_is_described_once(spec: Any) -> None:
    described = {(method, path) for method, path, _ in operations(spec)}
    assert described == {(route.method, route.full_path) for route in ROUTES}
    assert spec["openapi"].startswith("3.1.")


def test_operations_say_who_and_what(spec: Any) -> None:
    routes = {(route.method, route.full_path): route for route in ROUTES}
    ids = [operation["operationId"] for _, _, operation in operations(spec)]
    assert len(ids) == len(set(ids))
    for method, path, operation in operations(spec):
        route = routes[method, path]
        assert operation["x-itdesk-who"] == route.who
        assert operation["x-itdesk-id"] == route.id
        assert len(operation["summary"]) > 10 and operation["tags"] == [route.tag]
        signed_in = {"bearer": []} in operation["security"]
        assert signed_in == (route.who.role is not None or route.who is Who.OPERATOR)


def test_every_reference_leads_somewhere(spec: Any) -> None:
    for part in walk(spec):
        if isinstance(part, dict) and isinstance(part.get("$ref"), str):
            assert resolve(spec, part["$ref"])
        assert not isinstance(part, dict) or "$defs" not in part


def test_parameters_are_declared(spec: Any) -> None:
    for _, path, operation in operations(spec):
        parameters = operation.get("parameters", [])
        in_path = [p["name"] for p in parameters if p["in"] == "path"]
        assert in_path == re.findall(r"\{(\w+)\}", path)
        names = [(p["in"], p["name"]) for p in parameters]
        assert len(names) == len(set(names))
        for parameter in parameters:
            assert parameter["required"] if parameter["in"] == "path" else True
            assert {"type": "null"} not in list(walk(parameter["schema"]))


def test_every_failure_is_the_one_error_body(spec: Any) -> None:
    error = {"$ref": "#/components/schemas/Error"}
    for _, path, operation in operations(spec):
        failures = {code: r for code, r in operation["responses"].items() if int(code) >= 400}
        assert {"400", "422", "503"} <= set(failures), path
        for response in failures.values():
            schema = response["content"]["application/json"]["schema"]
            assert schema == error or error in schema["anyOf"]
        if {"bearer": []} in operation["security"]:
            assert "401" in failures
        if operation.get("requestBody"):
            assert {"413", "415"} <= set(failures)


def test_bodies_refuse_what_they_do_not_know(spec: Any) -> None:
    for _, path, operation in operations(spec):
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body and "$ref" in body["schema"]:
            assert resolve(spec, body["schema"]["$ref"])["additionalProperties"] is False, path


def test_free_strings_of_a_body_take_no_nul(spec: Any) -> None:
    password = spec["components"]["schemas"]["Credentials"]["properties"]["password"]
    assert password["pattern"] == r"^[^\x00]*$"


def test_new_objects_are_linked_to_what_can_be_done_with_them(spec: Any) -> None:
    links = spec["paths"]["/api/v1/tickets"]["post"]["responses"]["201"]["links"]
    assert links["get_tickets_by_ticket"] == {
        "operationId": "get_tickets_by_ticket",
        "parameters": {"ticket": "$response.body#/id"},
    }
    ids = {operation["operationId"] for _, _, operation in operations(spec)}
    assert {link["operationId"] for link in links.values()} <= ids


def test_table_for_the_command_line() -> None:
    rows = routes_table(ROUTES)
    assert len(rows) == len(ROUTES)
    me = next(row for row in rows if row["path"] == "/api/v1/auth/me")
    assert (me["method"], me["who"], me["role"]) == ("GET", "user", "user")
    assert set(me["aliases"]) >= {"/api/auth/me", "/api/v1/users/me", "/api/users/me"}


async def test_document_is_served(server: Server, spec: Any) -> None:
    answer = await server.ask("GET", "/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json() == spec
    assert (await server.ask("GET", "/openapi.json")).raw == answer.raw


@pytest.mark.parametrize("path", ["/docs", "/api/docs", "/redoc", "/docs/"])
async def test_pages_need_no_internet(server: Server, path: str) -> None:
    page = await server.ask("GET", path)
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    html = page.raw.decode()
    assert "http://" not in html and "https://" not in html and "//" not in html
    assert "<script>" not in html and "style=" not in html
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy and "default-src 'none'" in policy
    linked = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(linked) >= 4
    for path in linked:
        file = await server.ask("GET", path)
        assert file.status == 200 and len(file.raw) > 30, path
        assert "immutable" in file.headers["Cache-Control"]
        assert file.headers["X-Content-Type-Options"] == "nosniff"
        kind = file.headers["Content-Type"].partition(";")[0]
        assert (
            kind
            == {"js": "text/javascript", "css": "text/css", "png": "image/png"}[
                path.rpartition(".")[2]
            ]
        )


async def test_only_our_files_are_served(server: Server) -> None:
    page = (await server.ask("GET", "/docs")).raw.decode()
    base = re.findall(r'src="(/docs/assets/\w+)/', page)[0]
    for path in (
        f"{base}/index.html",
        f"{base}/..%2f..%2f__init__.py",
        f"{base}/%2e%2e",
        "/docs/assets/000000000000/swagger.js",
        "/docs/assets",
    ):
        assert (await server.ask("GET", path)).status == 404
