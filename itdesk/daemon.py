"""The composition root: the one place that builds everything, in order, on one page."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

import asyncpg

from itdesk import archives
from itdesk.actors.http import HttpServer
from itdesk.actors.reactor import Reactor
from itdesk.actors.scanner import Scanner
from itdesk.api import ROUTES
from itdesk.api.dispatch import build_app
from itdesk.api.route import Route
from itdesk.config import Settings
from itdesk.desk import Desk
from itdesk.desk.accounts import Accounts, NewUser
from itdesk.desk.attachments import Attachments, Rules
from itdesk.desk.health import Health
from itdesk.desk.passwords import Passwords, random_password
from itdesk.desk.plugins import Plugins
from itdesk.desk.projects import Projects
from itdesk.desk.scans import Scans
from itdesk.desk.sessions import Sessions
from itdesk.desk.tickets import Tickets
from itdesk.desk.tokens import Keys, Tokens, UrlSigner
from itdesk.errors import ConfigError, Conflict, Unavailable
from itdesk.hookspecs import Storage
from itdesk.model import SYSTEM, Event, Role
from itdesk.runtime import failpoints, log, systemd
from itdesk.runtime.clock import Clock
from itdesk.runtime.lag import LoopLag
from itdesk.runtime.metrics import Metrics
from itdesk.runtime.postgres import EmbeddedPostgres
from itdesk.runtime.supervisor import Supervisor
from itdesk.store.db import Database, Limits
from itdesk.store.migrations import Migrations
from itdesk.store.paging import Window

FIRST_ADMIN = "admin@itdesk.local"

_log = log.get_logger("daemon")
_clock = Clock()


@dataclass(frozen=True, slots=True)
class Ready:
    """What the daemon tells its operator once it serves."""

    url: str
    first_admin: tuple[str, str] | None


@asynccontextmanager
async def database_url(settings: Settings, *, daemon: bool = False) -> AsyncIterator[str]:
    """Lend the address of the database, which is started first when it is the embedded one."""
    if settings.database.dsn is not None:
        yield settings.database.dsn
        return
    role: Literal["daemon", "command"] = "daemon" if daemon else "command"
    async with EmbeddedPostgres(settings.state_dir, role=role) as server:
        yield server.url


@asynccontextmanager
async def open_database(settings: Settings, url: str) -> AsyncIterator[Database]:
    """Lend the database with its pool; nothing is connected until it is needed."""
    limits = Limits(
        connections=settings.database.pool_max,
        connect_seconds=settings.database.connect_seconds,
        acquire_seconds=settings.database.acquire_seconds,
        command_seconds=settings.database.command_seconds,
    )
    db = Database(url, limits)
    try:
        yield db
    finally:
        await db.close()


@asynccontextmanager
async def open_desk(settings: Settings, url: str) -> AsyncIterator[Desk]:
    """Build the desk on a migrated database, with its plugins entered; no actor runs yet."""
    clock, metrics = Clock(), Metrics()
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(open_database(settings, url))
        secret = settings.auth.jwt_secret
        keys = Keys.configured(
            algorithm=settings.auth.jwt_algorithm,
            secret=secret.get_secret_value() if secret else None,
            path=settings.jwt_key_path,
        )
        passwords = Passwords(settings.auth.bcrypt_cost, minimum=settings.auth.password_min_length)
        stack.callback(passwords.close)
        plugins = Plugins.load(
            settings.enabled_plugins(),
            directories=settings.plugin_host.directories,
            metrics=metrics,
        )
        tokens = Tokens(keys, clock)
        sessions = Sessions(db, tokens, passwords, settings.auth, clock)

        async def forget_files(files: Sequence[tuple[str, str | None]]) -> None:
            await desk.attachments.forget(files)

        desk = Desk(
            settings=settings,
            clock=clock,
            metrics=metrics,
            db=db,
            plugins=plugins,
            tokens=tokens,
            sessions=sessions,
            accounts=Accounts(db, passwords, sessions, settings.auth),
            projects=Projects(db),
            tickets=Tickets(
                db,
                plugins,
                default_project=settings.tickets.default_project,
                forget_files=forget_files,
            ),
            upload_dir=settings.storage.local.upload_dir,
        )
        await plugins.metrics(metrics)
        await stack.enter_async_context(plugins.lifespan(desk))
        await _open_files(desk, keys)
        yield desk


async def _open_files(desk: Desk, keys: Keys) -> None:
    """Give the desk its storage and its virus scanners, which plugins provide."""
    settings = desk.settings
    storage = _chosen_storage(settings, await desk.plugins.storages(desk))
    engines = await desk.plugins.scan_engines(desk)
    spool = settings.state_dir / "spool"
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    desk.attachments = Attachments(
        desk.db,
        storage,
        UrlSigner(keys.derive("storage-urls"), desk.clock),
        Rules(
            max_file_size=settings.storage.max_file_size,
            allowed_types=settings.storage.allowed_types,
            upload_seconds=settings.storage.presign_expires_seconds,
            download_seconds=settings.storage.download_expires_seconds,
        ),
    )
    desk.scans = Scans(
        desk.db,
        storage,
        engines,
        settings=settings.scanner,
        spool=spool,
        # What only an engine can unpack passes the walk when there is such an engine.
        limits=archives.Limits(opaque=any(engine.unpacks for engine in engines.values())),
        clock=desk.clock,
        metrics=desk.metrics,
    )


def _chosen_storage(settings: Settings, storages: Mapping[str, Storage]) -> Storage:
    wanted = {"local": "filesystem", "s3": "s3"}[settings.storage.backend or "local"]
    if wanted not in storages:
        raise ConfigError(
            f"storage.backend: needs the plugin {wanted}, which is not there or did not start;"
            " the log says why"
        )
    return storages[wanted]


async def serve(
    settings: Settings, ready: Callable[[Ready], None], *, fds: Sequence[socket.socket] = ()
) -> None:
    """Run the daemon until SIGTERM; returns when everything in flight is finished.

    Raises DeskError when something needed at the start is missing, and Escalated when a critical
    part crashes again and again.
    """
    stop, force = signals()
    for name in settings.failpoints:
        failpoints.arm(name)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(database_url(settings, daemon=True))
        await at_head(settings, url, patience=settings.database.migration_wait_seconds)
        desk = await stack.enter_async_context(open_desk(settings, url))
        await desk.projects.ensure_default(
            settings.tickets.default_project, settings.tickets.first_number
        )
        first_admin = None if settings.production else await first_administrator(desk)
        supervisor = _actors(desk)
        app = build_app(desk, await all_routes(desk))
        server = HttpServer(app, settings.server, desk.clock, sockets=fds)
        await server.start()
        stack.push_async_callback(server.stop)
        ready(Ready(server.url, first_admin))
        systemd.notify(f"READY=1\nSTATUS=serving {server.url}")
        await _run(supervisor, server, stop, force)


async def _run(
    supervisor: Supervisor, server: HttpServer, stop: asyncio.Event, force: asyncio.Event
) -> None:
    """Run the actors; on stop, first finish the requests in flight, then the actors."""
    drained = asyncio.Event()

    async def drain() -> None:
        await stop.wait()
        systemd.notify("STOPPING=1")
        await server.drain()
        drained.set()

    async def cut() -> None:
        await force.wait()
        server.force()

    async with asyncio.TaskGroup() as group:
        helpers = [group.create_task(drain()), group.create_task(cut())]
        try:
            await supervisor.run(drained, force)
        finally:
            for helper in helpers:
                helper.cancel()


def supervisor_of(desk: Desk) -> Supervisor:
    """Return a supervisor that keeps the log flowing and the loop watched."""
    supervisor = Supervisor(
        desk.clock,
        desk.metrics,
        systemd.notify,
        outages=(Unavailable, OSError),
        drain_timeout=desk.settings.server.drain_seconds,
        watchdog=systemd.watchdog_interval(),
    )
    supervisor.add(log.LogFlush())
    supervisor.add(LoopLag(desk.metrics))
    return supervisor


def _actors(desk: Desk) -> Supervisor:
    settings, scans = desk.settings, desk.scans
    supervisor = supervisor_of(desk)
    reactor = Reactor(desk)
    supervisor.add(reactor)
    scanner = Scanner(scans, settings.scanner, max_file_size=settings.storage.max_file_size)
    if settings.scanner.enabled:
        supervisor.add(scanner)

    def publish(events: Sequence[Event]) -> None:
        for event in events:
            reactor.tell(event)
            if event.type == "attachment.added":
                scanner.tell(event)

    desk.db.listeners.append(publish)
    desk.runtime = Health(desk, supervisor)
    return supervisor


async def all_routes(desk: Desk) -> tuple[Route, ...]:
    """Return the table of routes: the desk's own and those of plugins, below their names."""
    own = [
        replace(route, path=f"/plugins/{name}{route.path}", root=False)
        for name, routes in (await desk.plugins.routes()).items()
        for route in routes
    ]
    return (*ROUTES, *own)


async def at_head(settings: Settings, url: str, *, patience: float) -> None:
    """Return once the schema is the one that this version needs; migrate if told to."""
    migrations = Migrations(url)
    if settings.database.migrate_on_start:
        problem = await migrations.wait(patience)
        if problem is not None:
            raise Unavailable(f"The database does not answer after {patience} s: {problem}")
        done = await migrations.migrate()
        if done.applied or done.stamped:
            _log.info("schema migrated", applied=done.applied, stamped=done.stamped)
        return
    await _wait_for_head(migrations, url, patience)


async def _wait_for_head(migrations: Migrations, url: str, patience: float) -> None:
    """Wait until somebody has migrated the database, or raise what is missing."""
    deadline = _clock.monotonic() + patience
    problem = await migrations.wait(patience)
    if problem is not None:
        raise Unavailable(f"The database does not answer after {patience} s: {problem}")
    told = False
    while True:
        conn = await asyncpg.connect(url, timeout=10)
        try:
            status = await migrations.status(conn)
        finally:
            await conn.close()
        if status.at_head:
            return
        if status.unknown or _clock.monotonic() >= deadline:
            status.require()
        if not told:
            told = True
            _log.warning("waiting for migrations", pending=status.pending)
        await _clock.sleep(1.0)


async def first_administrator(desk: Desk) -> tuple[str, str] | None:
    """Create an administrator with a random password when nobody has an account yet."""
    people = await desk.accounts.list(SYSTEM, role=None, q=None, window=Window(limit=1))
    if people.items:
        return None
    password = random_password()
    try:
        first = NewUser(FIRST_ADMIN, "Administrator", Role.ADMIN, password)
        await desk.accounts.create(SYSTEM, first)
    except Conflict:
        return None  # another daemon on this database was faster, and told its operator
    return FIRST_ADMIN, password


def signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return what SIGTERM and SIGINT set: the first asks for an orderly stop, the second forces."""
    stop, force = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            force.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop, force
