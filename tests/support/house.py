"""A daemon that sends mail to a server that keeps it, and people with accounts by mail."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.support.daemon import PASSWORD, Answer, Live, live_on, make_daemon, wait
from tests.support.postbox import Postbox, token_in
from tests.support.postgres import Server
from tests.support.smtp import MailServer

FRONTEND = "https://desk.example.org/app"
ANOTHER = "another good passphrase"
CONFIRM, RESET, EXISTS = "Confirm your address", "Reset your password", "You already have"
WELCOME, CHANGED, INVITED = "Welcome", "was changed", "You have an account"
NONE = "A" * 43


@dataclass
class House:
    """A daemon that sends mail, and the mail server."""

    live: Live
    box: Postbox

    async def post(self, path: str, _json: Any = None, **body: Any) -> Answer:
        """POST as nobody in particular."""
        return await self.live.nobody.post(f"/auth/{path}", body or _json)

    async def register(self, email: str | None = None, password: str = PASSWORD) -> str:
        """Register somebody and return their address; nothing is verified."""
        email = email or address()
        answer = await self.post("register", email=email, password=password, name="New One")
        answer.expect(201)
        return email

    async def verified(self) -> str:
        """Return the address of somebody who registered and followed the link."""
        email = await self.register()
        token = token_in(await self.box.next(email, CONFIRM))
        (await self.post("verify", token=token)).expect(200)
        return email

    async def disabled(self) -> str:
        """Return the address of somebody who was switched off."""
        person = await self.live.person()
        off = await self.live.admin.patch(f"/users/{person.id}", {"is_active": False})
        off.expect(200)
        return person.email

    async def login(self, email: str, password: str = PASSWORD) -> Answer:
        """Try to sign in."""
        return await self.post("login", email=email, password=password)

    async def reset_token(self, email: str, count: int = 1) -> str:
        """Ask for a link that sets the password, and return its token."""
        (await self.post("forgot-password", email=email)).expect(200)
        return token_in(await self.box.next(email, RESET, count=count))

    async def sql(self, query: str, *values: Any) -> Any:
        """Return the rows of a query behind the daemon's back."""
        conn = await asyncpg.connect(self.live.daemon.env["DATABASE_URL"])
        try:
            return await conn.fetch(query, *values)
        finally:
            await conn.close()

    async def settled(self) -> None:
        """Return once no link is left to be made and no mail to be sent."""
        query = """
            SELECT 1 FROM jobs WHERE state IN ('waiting', 'leased')
            AND type IN ('auth.forgot', 'auth.resend', 'mail.deliver')
        """
        async with asyncio.timeout(20):
            while True:
                if not await self.sql(query):
                    return
                await asyncio.sleep(0.01)

    async def user(self, email: str) -> Any:
        """Return an account as an administrator sees it."""
        (found,) = (await self.live.admin.get("/users", params={"q": email})).expect(200)
        return found

    async def events(self, email: str) -> list[str]:
        """Return the types of what the journal has of a person, in alphabetical order."""
        rows = await self.sql(
            "SELECT type FROM events WHERE data->>'user_id' = (SELECT id::text FROM users"
            " WHERE lower(email) = lower($1))",
            email,
        )
        return sorted(row["type"] for row in rows)


def address() -> str:
    """Return an address that nobody has."""
    return f"{uuid4().hex[:12]}@example.org"


@contextmanager
def opened_house(pg_server: Server, port: int = 0, **env: str) -> Iterator[House]:
    """Lend a daemon that sends mail, on a database of its own."""
    url, server = wait(pg_server.create()), MailServer()
    server.start()
    settings = server.env(**env)
    # As it is by itself where mail is configured.
    del settings["ITDESK_AUTH__REQUIRE_VERIFIED_EMAIL"]
    daemon = make_daemon(url, **settings)
    daemon.port = port
    daemon.start()
    try:
        yield House(wait(live_on(daemon)), Postbox(server))
    finally:
        status = daemon.stop()
        server.end()
        wait(pg_server.drop(url))
        log = daemon.log.read_text()
        shutil.rmtree(daemon.state_dir)
        assert status == 0, log[-3000:]


@pytest.fixture(scope="session")
def house(pg_server: Server) -> Iterator[House]:
    """One daemon with mail and a frontend, not in development, for all who only talk to it."""
    with opened_house(pg_server, FRONTEND_BASE_URL=FRONTEND, ITDESK_SERVER__ENV="test") as house:
        yield house
