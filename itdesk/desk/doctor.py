"""Tries every configured part for real, and says of what fails how to mend it."""

from collections.abc import AsyncIterator

import asyncpg

from itdesk.desk import Desk
from itdesk.errors import DeskError, SchemaError
from itdesk.frozen import frozen
from itdesk.store import head
from itdesk.store.migrations import Migrations

OLDEST_POSTGRES = 15
DEMO_ADDRESSES = (
    "admin@example.com",
    "maintainer@example.com",
    "reporter@example.com",
    "admin@company.com",
)


@frozen
class Finding:
    """What trying one part came to; `remedy` says what to do when it is not ok."""

    part: str
    ok: bool
    said: str
    remedy: str = ""


async def examine_database(url: str, *, production: bool) -> AsyncIterator[Finding]:
    """Try the database and its schema, without the rest of the desk."""
    try:
        conn = await asyncpg.connect(url, timeout=5, command_timeout=5)
    except head.FAILURES as exc:
        remedy = "start PostgreSQL, or correct database.url"
        yield Finding("database", False, head.describe(exc), remedy)
        return
    try:
        for finding in await _examined(conn, Migrations(url), production=production):
            yield finding
    except head.FAILURES as exc:
        yield Finding("schema", False, head.describe(exc), "give the user the rights it needs")
    finally:
        conn.terminate()


async def _examined(
    conn: "asyncpg.Connection[asyncpg.Record]", migrations: Migrations, *, production: bool
) -> list[Finding]:
    version = conn.get_server_version()
    ok = version.major >= OLDEST_POSTGRES
    remedy = f"itdesk needs PostgreSQL {OLDEST_POSTGRES} or later: upgrade the server"
    found = [Finding("database", ok, f"PostgreSQL {version.major}.{version.minor}", remedy)]
    status = await migrations.status(conn)
    said = f"at {status.current or 'nothing'}, expected {status.expected}"
    remedy = "run `itdesk db migrate`" if not status.unknown else "install the newer itdesk"
    differences = await _differences(conn, migrations) if status.at_head else ()
    if differences:
        said = f"{said}, but {'; '.join(differences)}"
        remedy = "restore a backup, or repair these by hand; `itdesk db verify` compares again"
    found.append(Finding("schema", status.at_head and not differences, said, remedy))
    if production and status.at_head:
        found.append(await _demo_accounts(conn))
    return found


async def _differences(
    conn: "asyncpg.Connection[asyncpg.Record]", migrations: Migrations
) -> tuple[str, ...]:
    """Return what the schema has that is not as its marks say, or why that cannot be known."""
    if await migrations.unchanged(conn):
        return ()
    try:
        return (await migrations.verify()).differences
    except SchemaError as exc:
        return (exc.message,)


async def _demo_accounts(conn: "asyncpg.Connection[asyncpg.Record]") -> Finding:
    query = "SELECT email FROM users WHERE lower(email) = ANY ($1::text[]) ORDER BY email"
    found = [row["email"] for row in await conn.fetch(query, list(DEMO_ADDRESSES))]
    return Finding(
        "accounts",
        not found,
        f"demo accounts: {', '.join(found)}" if found else "no demo accounts",
        "delete them: their password is known to everybody",
    )


async def examine(desk: Desk) -> AsyncIterator[Finding]:
    """Try storage by a round trip, every scan engine by known samples, and every plugin."""
    try:
        await desk.attachments.check_storage()
        yield Finding("storage", True, "wrote, read and deleted a probe")
    except DeskError as exc:
        yield Finding("storage", False, exc.message, "see [storage] and the log")
    await desk.scans.trusted()
    problems = desk.scans.problems
    for name in desk.scans.engines:
        weak = problems.get(name, [])
        said = "; ".join(weak) or "found the samples it must find"
        yield Finding(f"scan engine {name}", not weak, said, f"see [plugins.{name}]")
    for name, weak in problems.items():
        if name not in desk.scans.engines:
            remedy = "set CLAMAV_HOST, or install itdesk[embedded] for yara"
            yield Finding(name, False, "; ".join(weak), remedy)
    if desk.mail.on:
        yield await _mail(desk)
    if desk.assist.model is not None:
        yield await _model(desk)
    for name, provider in desk.identities.providers.items():
        try:
            await provider.check()
            yield Finding(f"sign-in by {name}", True, "its keys are usable, it knows this client")
        except DeskError as exc:
            yield Finding(f"sign-in by {name}", False, exc.message, f"see [plugins.{name}]")
    for name, health in (await desk.plugins.health()).items():
        remedy = f"see [plugins.{name}] and the log"
        yield Finding(f"plugin {name}", health.ok, health.reason or "loaded", remedy)


async def _mail(desk: Desk) -> Finding:
    try:
        return Finding("mail", True, await desk.mail.check())
    except DeskError as exc:
        return Finding("mail", False, exc.message, f"see [plugins.{desk.settings.mail.plugin}]")


async def _model(desk: Desk) -> Finding:
    assert desk.assist.model is not None
    try:
        return Finding("language model", True, await desk.assist.model.check())
    except (DeskError, TimeoutError) as exc:
        said = exc.message if isinstance(exc, DeskError) else "it does not answer in time"
        remedy = f"see [plugins.{desk.settings.ai.plugin}]; until then rules answer"
        return Finding("language model", False, said, remedy)
