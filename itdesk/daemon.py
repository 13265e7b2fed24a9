"""The daemon: starts everything on top of the desk, in order, and stops it in reverse."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from itdesk.actors.embedded import EmbeddedDatabase
from itdesk.actors.http import HttpServer
from itdesk.actors.hub import Hub
from itdesk.actors.identity import Identity
from itdesk.actors.listener import Listener
from itdesk.actors.reactor import Reactor
from itdesk.actors.reloader import Reloader
from itdesk.actors.rescanner import Rescanner
from itdesk.actors.scanner import Scanner
from itdesk.actors.scheduler import Scheduler
from itdesk.actors.sequencer import Sequencer
from itdesk.actors.settler import Settler
from itdesk.actors.switcher import Switcher
from itdesk.actors.watch import Watch
from itdesk.actors.worker import Worker
from itdesk.api import ROUTES
from itdesk.api.dispatch import Dispatcher
from itdesk.api.route import Route
from itdesk.assembly import open_desk
from itdesk.config import Settings
from itdesk.desk import Desk
from itdesk.desk.accounts import NewUser
from itdesk.desk.health import Health
from itdesk.desk.passwords import random_password
from itdesk.errors import ConfigError, Conflict, DeskError, StorageFull, Unavailable
from itdesk.frozen import frozen
from itdesk.model import SYSTEM, Event, Role
from itdesk.runtime import failpoints, log, systemd
from itdesk.runtime.clock import Clock
from itdesk.runtime.lag import LoopLag
from itdesk.runtime.memory import MemoryReturn, share_one_arena
from itdesk.runtime.postgres import EmbeddedPostgres
from itdesk.runtime.supervisor import Escalated, Supervisor
from itdesk.store.opening import at_head
from itdesk.store.paging import Window

ACTORS_DRAIN_SECONDS = 10
FIRST_ADMIN = "admin@itdesk.local"
_STOPPING = (signal.SIGTERM, signal.SIGINT)

_log = log.get_logger("daemon")
_clock = Clock()


@frozen
class Ready:
    """What the daemon tells its operator once it serves."""

    url: str
    first_admin: tuple[str, str] | None


async def serve(
    settings: Settings,
    ready: Callable[[Ready], None],
    *,
    fds: Sequence[socket.socket] = (),
    read: Callable[[], Settings],
) -> None:
    """Run the daemon until SIGTERM; returns when everything in flight is finished.

    On SIGHUP what `read` returns then is put into effect, as far as that goes without a restart.
    Raises DeskError when something needed at the start is missing, and Escalated when a critical
    part crashes again and again.
    """
    share_one_arena()
    for name in settings.failpoints:
        failpoints.arm(name)
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(None) as starting:
                _cut_by_signal(starting)
                supervisor, server, told, reloader = await _start(settings, stack, fds, read)
        except TimeoutError:
            if not starting.expired():
                raise
            return
        # Nothing was awaited since the start was complete: no signal falls between the two.
        stop, force = signals()
        _on_hangup(lambda: reloader.tell("reload"))
        ready(told)
        systemd.notify(f"READY=1\nSTATUS=serving {server.url}")
        await _run(supervisor, server, stop, force)
        if left := supervisor.abandoned():
            # They ignore their cancellation: the interpreter would wait for them forever.
            _log.error("actors left behind", actors=left)
            log.flush(patience=1.0)
            os._exit(1)


async def _start(
    settings: Settings,
    stack: AsyncExitStack,
    fds: Sequence[socket.socket],
    read: Callable[[], Settings],
) -> tuple[Supervisor, HttpServer, Ready, Reloader]:
    """Get everything going, in order, down to the listening port; `stack` undoes it."""
    embedded: EmbeddedPostgres | None = None
    url = settings.database.dsn
    if url is None:
        embedded = EmbeddedPostgres(settings.state_dir, role="daemon")
        url = (await stack.enter_async_context(embedded)).url
    patience = settings.database.migration_wait_seconds
    await at_head(settings, url, patience=patience, clock=_clock)
    desk = await stack.enter_async_context(open_desk(settings, url))
    # Behind a passed socket all who came while nobody ran are served at once.
    await desk.db.warm(settings.database.pool_max if fds else settings.database.pool_min)
    await _require_upload_dir(desk)
    await desk.projects.ensure_default(
        settings.tickets.default_project, settings.tickets.first_number
    )
    hub = Hub(desk)
    supervisor = _actors(desk, hub, embedded)
    dispatcher = Dispatcher(desk, await all_routes(desk), hub)
    desk.switchboard.reroute = lambda: dispatcher.serve(table(desk))

    async def farewell() -> None:
        await hub.dismiss()
        desk.db.last_calls()

    server = HttpServer(dispatcher, settings.server, desk.clock, sockets=fds, farewell=farewell)
    reloader = Reloader(desk, server, read)
    supervisor.add(reloader)
    await server.start()
    stack.push_async_callback(server.stop)
    # Last, because this password is told once: a start that fails must not have made it.
    first_admin = None if settings.production else await first_administrator(desk)
    # What is there now stays: a full collection that looked through it all would hold up the loop.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    return supervisor, server, Ready(server.url, first_admin), reloader


async def _require_upload_dir(desk: Desk) -> None:
    """Refuse to start without a directory for files; a remote storage may come later."""
    if desk.settings.storage.backend != "local":
        return
    try:
        await desk.attachments.check_storage()
    except StorageFull as exc:
        _log.error("no room for attachments", problem=exc.message)
    except DeskError as exc:
        raise ConfigError(f"storage.local.upload_dir: {exc.message}") from exc


async def _run(
    supervisor: Supervisor, server: HttpServer, stop: asyncio.Event, force: asyncio.Event
) -> None:
    """Run the actors; on stop, first finish the requests in flight, then the actors."""
    drained = asyncio.Event()
    escalated: Escalated | None = None

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
        except Escalated as exc:
            escalated = exc  # raised here, it would come out as a group
        finally:
            for helper in helpers:
                helper.cancel()
    if escalated is not None:
        raise escalated


def supervisor_of(desk: Desk) -> Supervisor:
    """Return a supervisor that keeps the log flowing and the loop watched."""
    supervisor = Supervisor(
        desk.clock,
        desk.metrics,
        systemd.notify,
        outages=(Unavailable, OSError),
        # Requests had drain_seconds before; both together stay below what systemd grants.
        drain_timeout=min(desk.settings.server.drain_seconds, ACTORS_DRAIN_SECONDS),
        watchdog=systemd.watchdog_interval(),
    )
    supervisor.add(log.LogFlush())
    supervisor.add(LoopLag(desk.metrics))
    return supervisor


def _actors(desk: Desk, hub: Hub, embedded: EmbeddedPostgres | None) -> Supervisor:
    settings = desk.settings
    supervisor = supervisor_of(desk)
    if embedded is not None:
        supervisor.add(EmbeddedDatabase(embedded))
    listener = Listener(desk.db)
    supervisor.add(listener)
    supervisor.add(hub)
    listener.subscribe(hub.advanced)
    supervisor.add(Sequencer(desk.db, desk.metrics))
    supervisor.add(Settler(desk.limits))
    supervisor.add(MemoryReturn())
    worker = Worker(desk.jobs)
    supervisor.add(worker)
    supervisor.add(Scheduler(desk.schedules))
    supervisor.add(Identity(desk.tokens, desk.api_tokens))
    reactor = Reactor(desk)
    supervisor.add(reactor)
    scanner, rescanner = scanners(desk)
    if settings.scanner.enabled:
        supervisor.add(scanner)
        supervisor.add(rescanner)

    def publish(events: Sequence[Event]) -> None:
        for event in events:
            reactor.tell(event)
            if event.type == "attachment.added":
                scanner.wake()

    desk.db.listeners.append(publish)
    desk.db.job_listeners.append(worker.wake)
    desk.runtime = Health(desk, supervisor)
    supervisor.add(Watch(desk.runtime))
    supervisor.add(Switcher(desk.switchboard, desk.plugins.patience))
    return supervisor


def scanners(desk: Desk) -> tuple[Scanner, Rescanner]:
    """Return the two that scan: what waits, and again what was clean."""
    settings, most = desk.settings.scanner, desk.settings.storage.max_file_size
    return (
        Scanner(desk.scans, settings, max_file_size=most),
        Rescanner(desk.rescans, desk.scans, settings, max_file_size=most),
    )


async def all_routes(desk: Desk) -> tuple[Route, ...]:
    """Return the table of routes: the desk's own and those of plugins, below their names."""
    await desk.plugins.routes()
    return table(desk)


def table(desk: Desk) -> tuple[Route, ...]:
    """Return the table with the routes that plugins have now."""
    own = [
        replace(route, path=f"/plugins/{name}{route.path}", root=False)
        for name, routes in desk.plugins.served.items()
        for route in routes
    ]
    return (*ROUTES, *own)


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

    _on_signal(on_signal)
    return stop, force


def _cut_by_signal(starting: asyncio.Timeout) -> None:
    """Let the first signal cut the start short; a second one then kills."""

    def on_signal() -> None:
        for number in _STOPPING:
            asyncio.get_running_loop().remove_signal_handler(number)
        starting.reschedule(0)

    _on_signal(on_signal)
    # What is read at the start is fresh enough.
    _on_hangup(lambda: None)


def _on_hangup(act: Callable[[], object]) -> None:
    """Act on SIGHUP, unless it may mean that the terminal which we were started in is gone."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, act)


def _on_signal(act: Callable[[], None]) -> None:
    for number in _STOPPING:
        asyncio.get_running_loop().add_signal_handler(number, act)
