"""The services that know people, on a real database and a clock that stands still."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg

from itdesk.config import Auth, Settings
from itdesk.config import Limits as LimitSettings
from itdesk.desk.accounts import Accounts, NewUser
from itdesk.desk.api_tokens import ApiTokens
from itdesk.desk.factors import Factors
from itdesk.desk.guesses import Guesses
from itdesk.desk.keys import Keys
from itdesk.desk.mail import Mail
from itdesk.desk.passwords import Passwords
from itdesk.desk.projects import Projects
from itdesk.desk.proofs import Proofs
from itdesk.desk.second_factor import SecondFactors
from itdesk.desk.sessions import Sessions
from itdesk.desk.signups import Signups
from itdesk.desk.tokens import Tokens
from itdesk.model import SYSTEM, Caller, Role, User, new_id
from itdesk.runtime.clock import FakeClock
from itdesk.runtime.metrics import Metrics
from itdesk.store.db import Database, Limits

PASSWORD = "correct horse battery staple"


@dataclass
class Office:
    """One node: its services, and what a test wants of its people."""

    url: str
    auth: Auth = field(default_factory=lambda: Auth(bcrypt_cost=4))
    clock: FakeClock = field(default_factory=FakeClock)
    limits: Limits | None = None
    remembered: int = 100
    guessing: LimitSettings = field(default_factory=lambda: LimitSettings(enabled=False))

    def __post_init__(self) -> None:
        self.db = Database(self.url, self.limits)
        self.tokens = Tokens(Keys(b"a secret of at least 32 bytes ..."), self.clock)
        self.passwords = Passwords(self.auth.bcrypt_cost, threads=2)
        self.guesses = Guesses(self.db, self.guessing)
        factors = Factors(b"a key of exactly thirty-two byte", self.clock)
        self.sessions = Sessions(
            self.db,
            self.tokens,
            self.passwords,
            self.guesses,
            self.auth,
            self.clock,
            factors=factors,
            remembered=self.remembered,
        )
        self.api_tokens = ApiTokens(self.db, self.sessions, self.auth, self.clock)
        self.second_factors = SecondFactors(
            self.db, factors, self.sessions, self.passwords, self.auth
        )
        settings = Settings(auth=self.auth)
        self.proofs = Proofs(Mail(self.db, settings, Metrics()), settings, b"a secret for codes")
        self.accounts = Accounts(self.db, self.passwords, self.guesses, self.sessions, self.proofs)
        self.signups = Signups(
            self.db, self.passwords, self.sessions, self.proofs, self.auth, self.clock
        )
        self.projects = Projects(self.db)

    async def close(self) -> None:
        self.passwords.close()
        await self.db.close()

    async def register(self, *asked: str, **more: Any) -> User:
        return (await self.signups.register(*asked, **more)).user

    async def user(self, name: str, role: Role = Role.USER, **more: Any) -> User:
        more = {"email": f"{name}@example.org", "password": PASSWORD, **more}
        return await self.accounts.create(SYSTEM, NewUser(name=name, role=role, **more))

    async def caller(self, name: str, role: Role = Role.USER) -> Caller:
        """Return a new person, signed in."""
        user = await self.user(name, role)
        return await self.sessions.authenticate((await self.sign_in(user)).access_token)

    async def sign_in(self, user: User) -> Any:
        return await self.sessions.login(user.email, PASSWORD)

    async def ticket(self, reporter: UUID | None, *assignees: UUID, status: str = "open") -> UUID:
        id = new_id()
        async with self.db.transaction() as tx:
            await tx.conn.execute(
                "INSERT INTO tickets (id, key, project_id, title, status, reporter_id,"
                " reporter_name) SELECT $1::uuid, 'TSK-' || $1::uuid, id, 'A title', $2, $3,"
                " 'Reporter' FROM projects WHERE key = 'TSK'",
                id,
                status,
                reporter,
            )
            for position, person in enumerate(assignees):
                await tx.conn.execute(
                    "INSERT INTO ticket_assignees (ticket_id, user_id, position)"
                    " VALUES ($1, $2, $3)",
                    id,
                    person,
                    position,
                )
        return id

    async def rows(self, query: str, *values: Any) -> list[Any]:
        async with self.db.connection() as conn:
            return list(await conn.fetch(query, *values))

    async def value(self, query: str, *values: Any) -> Any:
        async with self.db.connection() as conn:
            return await conn.fetchval(query, *values)

    async def journal(self, type: str) -> list[Any]:
        return await self.rows("SELECT * FROM events WHERE type = $1 ORDER BY created_at, id", type)

    async def pass_time(self, **time: float) -> None:
        await self.clock.advance(timedelta(**time).total_seconds())


@asynccontextmanager
async def opened(office: Office) -> AsyncIterator[Office]:
    """Lend a node, closed afterwards."""
    try:
        yield office
    finally:
        await office.close()


@asynccontextmanager
async def another_node(office: Office, **changes: Any) -> AsyncIterator[Office]:
    """Lend a second node on the same database and clock."""
    async with opened(replace(office, **changes)) as node:
        yield node


@asynccontextmanager
async def outside(office: Office) -> AsyncIterator[Any]:
    """Lend a connection that is none of the desk's."""
    conn = await asyncpg.connect(office.url)
    try:
        yield conn
    finally:
        await conn.close()


async def until_blocked(conn: Any) -> None:
    """Return when somebody waits for a lock in this database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    for _ in range(5000):
        if await conn.fetchval(query):
            return
    raise AssertionError("nobody waits for a lock")
