"""What the daemon says about itself: one line of JSON per event, whatever came, and no secret.

S-34 and S-35 hold here for the real process on every path: success, refusal, crash and DEBUG.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import pytest
import pytest_asyncio

from tests.support.clamd import Clamd
from tests.support.daemon import SMALL_FILES, Live, Person, make_daemon, running, started
from tests.support.load import eventually
from tests.support.postgres import Server
from tests.support.samples import eicar

# A plugin as strangers write them: it logs what it should not, and fails with secrets in its text.
CARELESS = """
import logging

from itdesk.api.route import Reply, Route, Who
from itdesk.hookspecs import hookimpl
from pydantic import BaseModel, SecretStr


class Settings(BaseModel):
    api_token: str
    password: SecretStr


async def fail(call):
    headers = dict(call.request.headers)
    said = (await call.request.read()).decode()
    logging.getLogger("plugin.careless").warning("heard " + said, extra={said: said})
    logging.getLogger("plugin.careless").warning("failing %s", headers, extra={"headers": headers})
    dsn = call.desk.settings.database.dsn
    raise RuntimeError(f"cannot reach {dsn} with {SETTINGS.api_token}, {SETTINGS!r}, {headers}")


class Plugin:
    name, itdesk_api, Settings = "careless", 1, Settings

    def __init__(self, settings):
        global SETTINGS
        SETTINGS = settings

    @hookimpl
    def itdesk_routes(self):
        return [Route(id="C1", method="POST", path="/fail", handler=fail, who=Who.PUBLIC, tag="x")]

    @hookimpl
    async def itdesk_event(self, event):
        raise ValueError(f"password={SETTINGS.password.get_secret_value()} for {event!r}")
"""


class Secrets:
    """Values that must not be seen again, by what they are."""

    def __init__(self) -> None:
        self.planted: dict[str, str] = {}

    def plant(self, what: str, value: str | None = None) -> str:
        """Return a value for a place, and remember it."""
        self.planted[what] = value or f"planted{uuid4().hex}"
        return self.planted[what]

    def found_in(self, text: str) -> list[str]:
        """Return what of it a text shows."""
        return [what for what, value in self.planted.items() if value in text]


@pytest_asyncio.fixture(name="secrets")
async def _secrets() -> Secrets:
    return Secrets()


@pytest_asyncio.fixture(name="talkative")
async def _talkative(
    pg_server: Server, clamd: Clamd, secrets: Secrets, tmp_path: Path
) -> AsyncIterator[Live]:
    """A daemon at DEBUG with secrets in every setting that takes one, and a careless plugin."""
    tmp_path.chmod(0o755)
    (tmp_path / "careless.py").write_text(CARELESS)
    (tmp_path / "careless.py").chmod(0o644)
    plain = await pg_server.create(tcp=True)
    password = secrets.plant("database password")
    daemon = make_daemon(
        plain.replace("itdesk@", f"itdesk:{password}@"),
        LOG_LEVEL="DEBUG",
        SECRET_KEY=secrets.plant("signing secret"),
        ITDESK_AUTH__JWT_ALGORITHM="HS256",
        ITDESK_METRICS__TOKEN=secrets.plant("metrics token"),
        ITDESK_PLUGIN_HOST__DIRECTORIES=str(tmp_path),
        ITDESK_PLUGINS__CARELESS__API_TOKEN=secrets.plant("a plugin's token"),
        ITDESK_PLUGINS__CARELESS__PASSWORD=secrets.plant("a plugin's password"),
        CLAMAV_HOST="127.0.0.1",
        CLAMAV_PORT=str(clamd.port),
        **SMALL_FILES,
    )
    async with running(daemon) as live:
        yield live
    await pg_server.drop(plain)


async def _provoke(live: Live, secrets: Secrets) -> list[str]:
    """Send secrets along every way there is; return the bodies of the refusals."""
    plant = secrets.plant
    bodies: list[str] = []
    assert live.daemon.first_admin is not None
    plant("first administrator's password", live.daemon.first_admin[1])
    plant("administrator's access token", live.admin.token)
    plant("administrator's refresh token", live.admin.refresh_token)
    carol = {"email": "carol@example.org", "name": "Carol", "password": plant("password")}
    (await live.nobody.post("/auth/register", carol)).expect(201)
    alice = await live.sign_in("carol@example.org", carol["password"])
    plant("access token", alice.token)
    plant("refresh token", alice.refresh_token)
    again = (await live.nobody.post("/auth/refresh", {"refresh_token": alice.refresh_token})).json
    alice.token = plant("second access token", again["access_token"])
    plant("second refresh token", again["refresh_token"])

    async def refused(method: str, path: str, who: Person = live.nobody, **how: Any) -> None:
        answer = await who.call(method, path, **how)
        assert answer.status >= 400, (method, path, answer.status)
        bodies.append(answer.raw.decode() + str(dict(answer.headers)))

    login = "/api/v1/auth/login"
    await refused(
        "POST", login, json={"email": "carol@example.org", "password": plant("wrong password")}
    )
    await refused("POST", login, data=b'{"password": "%s", ' % plant("broken JSON").encode(),
                  headers={"Content-Type": "application/json"})  # fmt: skip
    await refused(
        "POST", login, json={"email": 5, "password": {"x": plant("password of a wrong type")}}
    )
    god = {"email": "x@example.org", "name": "X", "role": "god"}
    beside = plant("password beside a mistake")
    await refused("POST", "/api/v1/users", live.admin, json={**god, "password": beside})
    for name, value in {
        "Authorization": f"Bearer {plant('forged bearer token')}",
        "authorization": f"Basic {plant('basic credentials')}",
        "Cookie": f"itdesk_access={plant('cookie')}; itdesk_refresh={plant('refresh cookie')}",
        "X-Api-Key": plant("api key header"),
        "X-Hub-Signature": f"sha256={plant('webhook signature')}",
    }.items():
        await refused("GET", "/api/v1/auth/me", headers={name: value})
        await refused("POST", "/api/v1/plugins/careless/fail", headers={name: value}, json={})
    await refused(
        "POST", "/api/v1/auth/refresh", json={"refresh_token": plant("unknown refresh token")}
    )
    await refused("GET", f"/api/v1/auth/me?token={plant('token in the query')}")
    await refused("GET", f"/api/v1/auth/me?code={plant('code in the query')}")
    await refused("GET", f"/api/v1/nothing?signature={plant('signature in the query')}")
    await refused(
        "GET", "/metrics", headers={"Authorization": f"Bearer {plant('wrong metrics token')}"}
    )
    await refused("GET", f"http://me:{plant('password in a URL')}@{live.url[7:]}/api/v1/auth/me")
    await _link(live, alice, secrets)
    return bodies


async def _link(live: Live, alice: Person, secrets: Secrets) -> None:
    """Use an upload link and a download link, whose signatures are keys by themselves."""
    ticket = (await alice.ticket("Ticket with files"))["key"]
    asked = {"original_filename": "a.txt", "mime": "text/plain", "size": 5}
    link = (await alice.post(f"/tickets/{ticket}/attachments/presign", asked)).expect(201)
    secrets.plant("upload signature", re.split(r"[/=]", link["upload_url"])[-1])
    sent = await live.nobody.call(link["method"], link["upload_url"], data=b"hello",
                                  headers=link["headers"])  # fmt: skip
    assert sent.status == 200
    made = (await alice.post("/attachments", {"attachment_id": link["attachment_id"]})).expect(201)
    await alice.scanned(made["id"])
    path = f"/tickets/{ticket}/attachments/{made['id']}/download"
    url = (await alice.get(path)).expect(200)["download_url"]
    secrets.plant("download signature", re.split(r"[/=]", url)[-1])
    assert (await live.nobody.call("GET", url)).raw == b"hello"
    assert (await live.nobody.call("GET", url[:-3] + "xxx")).status in (401, 403, 404)


async def test_no_secret_is_seen_again(talkative: Live, secrets: Secrets) -> None:
    """S-34: planted on every way in, none comes out in log, errors, metrics, journal or `ps`."""
    live, daemon = talkative, talkative.daemon
    bodies = await _provoke(live, secrets)
    assert len(secrets.planted) >= 30
    token = {"Authorization": f"Bearer {secrets.planted['metrics token']}"}
    metrics = (await live.nobody.call("GET", "/metrics", headers=token)).raw.decode()
    assert "itdesk_http_request_seconds" in metrics
    conn = await asyncpg.connect(daemon.env["DATABASE_URL"])
    rows = await conn.fetch("SELECT e::text FROM events e")
    journal = "\n".join(row[0] for row in rows)
    await conn.close()
    assert daemon.process is not None
    shown = Path(f"/proc/{daemon.process.pid}/cmdline").read_text()
    for command in (("config", "show"), ("config", "check"), ("doctor",)):
        done = await asyncio.to_thread(daemon.run, *command)
        shown += done.stdout + done.stderr
    assert await asyncio.to_thread(daemon.stop) == 0
    log = daemon.log.read_text()

    assert "RuntimeError" in log and "cannot reach" in log, "the crash was not logged"
    assert secrets.found_in(log) == []
    assert secrets.found_in("\n".join(bodies)) == []
    assert secrets.found_in(metrics) == []
    assert secrets.found_in(journal) == []
    assert secrets.found_in(shown) == []
    crashes = [body for body in bodies if "E_INTERNAL" in body]
    assert crashes and not [body for body in crashes if "cannot reach" in body]


async def test_debug_shows_sql_with_its_time_and_no_values(talkative: Live) -> None:
    """S4-10: DEBUG has the timings; INFO, which the other tests run at, has not."""
    await talkative.admin.ticket("A title that only the arguments have")
    lines: list[Any] = []

    async def told() -> bool:
        lines[:] = [line for line in talkative.daemon.lines() if line["event"] == "sql"]
        return any("INSERT INTO tickets" in line["statement"] for line in lines)

    # A statement is told of after its answer, and the request may be answered between the two.
    await eventually(told, seconds=20)
    assert all(isinstance(line["seconds"], float) and line["level"] == "debug" for line in lines)
    assert "A title that only the arguments have" not in str(lines)


# --- lines are events --------------------------------------------------------------------------

FORGED = '{"level":"critical","event":"forged"}'
HOSTILE: Sequence[str] = (
    f"x\n{FORGED}",
    f"x\r\n{FORGED}",
    f"x\x1b[2J\x1b[31m{FORGED}",
    f"x\u2028{FORGED}\u2029",
    f"x\x85{FORGED}",
    f"x\u202e{FORGED}",
    f'"}}\n{FORGED}',
    "x\x00y",
    "\ud7ff\ue000\uffff",
    "%n%s%x" * 50,
    "a" * 20_000,
)


async def test_hostile_text_makes_no_line_of_its_own(talkative: Live) -> None:
    """S-35: titles, names, addresses, paths and headers; lines = events, each valid JSON."""
    live = talkative
    ticket = (await live.admin.ticket())["key"]
    for text in HOSTILE:
        await live.admin.post("/tickets", {"title": text, "tags": [text], "description": text})
        await live.admin.post(f"/tickets/{ticket}/comments", {"body": text})
        await live.nobody.post("/auth/login", {"email": text, "password": text})
        await live.nobody.post("/auth/register", {"email": text, "name": text, "password": text})
        await live.admin.call("GET", f"/api/v1/tickets?q={text[:2000]}")
        await live.admin.call("GET", f"/api/v1/tickets/{text[:200]}")
        # Our own lines quote nobody; a plugin's may.
        await live.nobody.post("/plugins/careless/fail", data=text.encode())
        named = {"original_filename": text, "mime": "text/plain", "size": 1}
        await live.admin.post(f"/tickets/{ticket}/attachments/presign", named)
    raw = [f"GET /a{text[:300]} HTTP/1.1".encode() for text in HOSTILE]
    raw += [b"GET /ping HTTP/1.1\r\nUser-Agent: " + text[:300].encode() for text in HOSTILE]
    raw += [b"GET /ping HTTP/1.1\r\nX-Request-ID: " + text[:300].encode() for text in HOSTILE]
    raw += [b"\x16\x03\x01 TLS to a plain port", b"\xff\xfe", b"GET"]
    for head in raw:
        await _say(live, head + b"\r\nHost: desk\r\nConnection: close\r\n\r\n")
    assert await asyncio.to_thread(live.daemon.stop) == 0
    whole = live.daemon.log.read_bytes()
    lines = [orjson.loads(line) for line in whole.splitlines()]
    assert [line for line in lines if line["event"] == "forged"] == []
    # No reader of any habit sees more lines than there are, and no terminal obeys.
    assert len(whole.decode().splitlines()) == len(lines)
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", whole)
    assert max(map(len, whole.splitlines())) < 70_000


async def _say(live: Live, text: bytes) -> None:
    """Send bytes as they are and read whatever comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(live.url.rpartition(":")[2]))
    writer.write(text)
    try:
        await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_one_line_a_request_with_the_true_peer(live: Live) -> None:
    """S2-58, S-35: request_id and trace are on it, and nobody else's address."""
    ids = [f"mine-{uuid4().hex}" for _ in range(20)]
    trace = uuid4().hex
    for id in ids:
        await live.nobody.call("GET", "/ping", headers={
            "X-Request-ID": id, "X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7",
            "X-Real-IP": "203.0.113.7", "Traceparent": f"00-{trace}-{'1' * 16}-01",
        })  # fmt: skip

    async def all_there() -> bool:
        return len(_requests(live, ids)) == len(ids)

    await eventually(all_there, seconds=5)
    for line in _requests(live, ids):
        assert (line["logger"], line["status"], line["address"]) == ("access", 200, "127.0.0.1")
        assert line["trace_id"] == trace
        assert line["seconds"] < 5
    metrics = (await live.nobody.call("GET", "/metrics")).raw.decode()
    assert re.search(r'itdesk_http_request_seconds_bucket\{.*route="/ping"', metrics)


def _requests(live: Live, ids: Sequence[str]) -> list[Mapping[str, Any]]:
    return [line for line in live.daemon.lines() if line.get("request_id") in ids]


async def test_the_journal_can_be_filtered_by_component(live: Live, clamd: Clamd) -> None:
    """S0-38, S2-65: each scanned file is one line with id and result; logger names the part."""
    alice = await live.person()
    ticket = (await alice.ticket())["key"]
    good = (await alice.upload(ticket, b"harmless")).expect(201)["id"]
    bad = (await alice.upload(ticket, eicar(), "bad.txt")).expect(201)["id"]
    for file in (good, bad):
        await alice.scanned(file)
    lines = live.daemon.lines()
    scanned = [(x["attachment"], x["result"]) for x in lines if x["event"] == "attachment scanned"]
    assert Counter(scanned)[good, "CLEAN"] == Counter(scanned)[bad, "INFECTED"] == 1
    assert {x["logger"] for x in lines if x["event"] == "attachment scanned"} == {"scanner"}
    assert {"access", "http", "scanner"} <= {line["logger"] for line in lines}
    assert all({"time", "level", "logger", "event"} <= set(line) for line in lines)
    assert "sql" not in {line["event"] for line in lines}


@pytest.mark.parametrize("level", ["WARNING"])
async def test_a_quiet_daemon_says_only_what_is_wrong(pg_server: Server, level: str) -> None:
    """S4-10: LOG_LEVEL silences requests as well."""
    async with started(pg_server, LOG_LEVEL=level) as live:
        await live.admin.ticket()
        assert await asyncio.to_thread(live.daemon.stop) == 0
        assert [line for line in live.daemon.lines() if line["level"] in ("debug", "info")] == []
