"""The desk inside the test's own process, on real parts: for what has to be driven by hand."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from itdesk import assembly
from itdesk.actors.scanner import Scanner
from itdesk.config import load
from itdesk.desk import Desk
from itdesk.desk.accounts import NewUser
from itdesk.desk.tickets import NewTicket
from itdesk.model import SYSTEM, Attachment, Caller, Role, Ticket, new_id
from itdesk.runtime.actor import TICK
from tests.support.clamd import Clamd
from tests.support.daemon import SMALL_FILES


@dataclass
class Bench:
    """A desk and the few things that tests do with it over and over."""

    desk: Desk
    state_dir: Path

    async def person(self, role: Role = Role.USER) -> Caller:
        """Return a new person as a caller."""
        new = NewUser(f"{new_id().hex}@example.org", f"A {role}", role)
        user = await self.desk.accounts.create(SYSTEM, new)
        return Caller(user.id, user.name, user.role, email=user.email)

    async def ticket(self, caller: Caller) -> Ticket:
        """Open a ticket."""
        return await self.desk.tickets.create(caller, NewTicket("A ticket with files"))

    async def upload(
        self, caller: Caller, ticket: Ticket, data: bytes, name: str = "a.txt"
    ) -> Attachment:
        """Attach a file."""

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        stashed = await self.desk.attachments.stash(
            caller, ticket.key, filename=name, mime="text/plain", chunks=chunks()
        )
        return await self.desk.attachments.attach(caller, stashed)

    async def served(self, caller: Caller, file: Attachment) -> bytes:
        """Return the bytes that a download would send."""
        content = await self.desk.attachments.open(caller, file.id)
        return b"".join([chunk async for chunk in content.chunks])

    async def scan(self) -> None:
        """Let the scanner look once, as a tick would."""
        scanner = Scanner(
            self.desk.scans,
            self.desk.settings.scanner,
            max_file_size=self.desk.settings.storage.max_file_size,
        )
        scanner.tell(TICK)
        await scanner.step()

    async def sql(self, statement: str, *values: object) -> object:
        """Run a statement behind the desk's back and return its first value."""
        async with self.desk.db.connection() as conn:
            return await conn.fetchval(statement, *values)

    async def expire_leases(self) -> None:
        """Make every claim look forgotten."""
        await self.sql("UPDATE attachments SET scan_lease_until = now() - interval '1 hour'")

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric."""
        return self.desk.metrics.registry.get_sample_value(name, labels) or 0.0

    def objects(self, area: str) -> list[Path]:
        """Return the stored files of one area: quarantine or clean."""
        return sorted(p for p in (self.desk.upload_dir / area).rglob("*") if p.is_file())


@asynccontextmanager
async def bench_on(database_url: str, **env: str) -> AsyncIterator[Bench]:
    """Lend a desk on a database, with the settings of these environment names."""
    state_dir = Path(tempfile.mkdtemp(prefix="itdesk-bench-", dir="/tmp"))
    environ = {
        "DATABASE_URL": database_url,
        "ITDESK_AUTH__BCRYPT_COST": "4",
        "ITDESK_TICKETS__SEARCH_MILLISECONDS": "5000",
        **env,
    }
    settings = load(state_dir=state_dir, environ=environ)
    try:
        async with assembly.open_desk(settings, database_url) as desk:
            yield Bench(desk, state_dir)
    finally:
        shutil.rmtree(state_dir)


@pytest.fixture
def clamd_env(clamd: Clamd) -> Iterator[dict[str, str]]:
    """The settings that name the real clamd of the tests."""
    yield {"CLAMAV_HOST": clamd.host, "CLAMAV_PORT": str(clamd.port), **SMALL_FILES}
