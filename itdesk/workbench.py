"""A whole desk for the tests of a plugin: real database, real jobs, nothing listening.

    async with workbench('[plugins.hello]', directory=Path("plugins.d")) as bench:
        ticket = await bench.ticket(await bench.person())
        await bench.settle()
        assert bench.problems() == {}

The database is the embedded one (`pip install itdesk[embedded]`), made for the workbench and gone
with it, or the one that ITDESK_WORKBENCH_DATABASE names in the environment: that one must be empty.
Time is the real one, but nothing waits for it: `settle` does at once what would be done later.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itdesk import assembly
from itdesk.config import Settings, load
from itdesk.desk import Desk
from itdesk.desk.accounts import NewUser
from itdesk.desk.tickets import NewTicket
from itdesk.model import SYSTEM, Caller, Event, Role, Ticket, new_id
from itdesk.runtime.clock import Clock
from itdesk.store import head, jobs
from itdesk.store.opening import database_url

START_SECONDS = 60.0
_ADMIN = Caller(None, "workbench", Role.ADMIN)


@dataclass
class Workbench:
    """A desk whose plugins are entered, and what tests of them do over and over."""

    desk: Desk
    _events: list[Event] = field(default_factory=list)

    async def person(self, role: Role = Role.USER) -> Caller:
        """Return somebody new, who acts in this role."""
        new = NewUser(f"{new_id().hex}@example.org", f"A {role}", role)
        user = await self.desk.accounts.create(SYSTEM, new)
        return Caller(user.id, user.name, user.role, email=user.email)

    async def ticket(self, caller: Caller = SYSTEM, title: str = "VPN is down") -> Ticket:
        """Open a ticket."""
        return await self.desk.tickets.create(caller, NewTicket(title))

    async def settle(self, *, rounds: int = 20) -> None:
        """Tell the reactors what happened and do all jobs, failed attempts again, until all rest.

        After so many rounds, what still waits is left alone.
        """
        for _ in range(rounds):
            events, self._events[:] = self._events[:], []
            for event in events:
                await self.desk.plugins.event(self.desk, event)
            held = await self.desk.jobs.claim({})
            for one in held:
                await self.desk.jobs.run(one)
            if not held and not self._events and not await self._hastened():
                return

    async def switch(self, name: str, *, enabled: bool) -> str:
        """Switch a plugin off or on as an operator would; return its state: off, loaded, broken."""
        return (await self.desk.switchboard.turn(_ADMIN, name, enabled=enabled)).state

    def plugin(self, name: str) -> Any:
        """Return the plugin's own object."""
        return self.desk.plugins.instance(name)

    def problems(self) -> dict[str, str]:
        """Return, by plugin, why it is out or what failed in it; empty when all is well."""
        status = self.desk.plugins.status().items()
        return {name: one.reason for name, one in status if one.reason}

    async def _hastened(self) -> int:
        async with self.desk.db.connection() as conn:
            return await jobs.hasten(conn)


@asynccontextmanager
async def workbench(config: str, *, directory: Path | None = None) -> AsyncIterator[Workbench]:
    """Lend a desk with this configuration (TOML) and the drop-in plugins of a directory."""
    state_dir = Path(tempfile.mkdtemp(prefix="itdesk-workbench-"))
    try:
        settings = _settings(state_dir, config, directory)
        async with database_url(settings) as url:
            await head.at_head(url, patience=START_SECONDS, migrate=True, clock=Clock())
            async with assembly.open_desk(settings, url) as desk:
                await desk.projects.ensure_default(
                    settings.tickets.default_project, settings.tickets.first_number
                )
                bench = Workbench(desk)
                desk.db.listeners.append(bench._events.extend)
                yield bench
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)


def _settings(state_dir: Path, config: str, directory: Path | None) -> Settings:
    # The embedded database of root runs as nobody, who must be able to enter.
    state_dir.chmod(0o755)
    path = state_dir / "itdesk.toml"
    directories = f"'{directory.resolve()}'" if directory else ""
    # Fewer rounds of bcrypt: people of tests are made often and attacked never.
    head = f"auth.bcrypt_cost = 4\nplugin_host.directories = [{directories}]\n"
    path.write_text(head + config)
    named = os.environ.get("ITDESK_WORKBENCH_DATABASE")
    environ = {"DATABASE_URL": named} if named else {}
    return load(config_path=path, state_dir=state_dir, environ=environ)
