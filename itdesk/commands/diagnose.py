"""One file for whoever helps from afar: how this desk is, and no secret in it.

Every part is collected by itself: one that fails says so in its place. Everything passes the same
masks as the log does, known values and telling names, whatever it came from.
"""

import asyncio
import io
import platform
import shutil
import sys
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import click
import orjson

from itdesk import __version__
from itdesk.commands.context import Context, examples, run
from itdesk.commands.doctor import findings
from itdesk.commands.progress import Bar
from itdesk.config import Settings, mask_url, show
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import redacted
from itdesk.store import backups, diagnosis
from itdesk.store.migrations import Migrations
from itdesk.store.opening import database_url

LOG_LINES = 2000
_ASK_SECONDS = 5.0
_PART_SECONDS = 120.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104

Collect = Callable[[], Awaitable[str]]


@click.command(epilog=examples("itdesk diagnose desk.tar.gz"))
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def diagnose(context: Context, file: Path | None) -> None:
    """Write FILE (a tar.gz) with all that helps to find a fault: send it to whoever helps you.

    It has versions, settings, readiness, metrics, the last log lines, the schema, counts of jobs
    and rows, plugins, and what `itdesk doctor` says; secrets are masked, and no ticket is in it.
    """
    settings = context.settings()
    path = file or Path(f"itdesk-diagnose-{Clock().now():%Y%m%d-%H%M%S}.tar.gz")

    async def work() -> dict[str, str]:
        parts: dict[str, str] = {}
        wanted = _parts(context, settings)
        with Bar() as bar:
            for name, collect in wanted.items():
                parts[name] = _clean(await _collected(collect))
                bar.count("collected", len(parts), len(wanted))
        return parts

    try:
        target = path.open("xb")
    except OSError as exc:
        raise click.ClickException(f"{path} cannot be made: {exc.strerror}.") from exc
    parts = run(work())
    with target, tarfile.open(fileobj=target, mode="w:gz") as bundle:
        path.chmod(0o600)
        for name, text in parts.items():
            data = text.encode("utf-8", "backslashreplace")
            info = tarfile.TarInfo(f"itdesk-diagnose/{name}")
            info.size, info.mode = len(data), 0o600
            bundle.addfile(info, io.BytesIO(data))
    click.echo(str(path))


def _parts(context: Context, settings: Settings) -> Mapping[str, Collect]:
    return {
        "versions.json": _versions,
        "settings.toml": lambda: _settings(settings),
        "doctor.txt": lambda: _doctor(context, settings),
        "database.json": lambda: _database(settings),
        "plugins.json": lambda: _plugins(context, settings),
        "readiness.json": lambda: _asked(settings, "/readyz"),
        "metrics.txt": lambda: _asked(settings, "/metrics"),
        "log.txt": _journal,
        "postgres.log.txt": lambda: _tail(settings.state_dir / "postgres" / "log"),
    }


async def _collected(collect: Collect) -> str:
    try:
        async with asyncio.timeout(_PART_SECONDS):
            return await collect()
    except TimeoutError:
        return f"not collected: took longer than {_PART_SECONDS:g} s\n"
    except Exception as exc:  # noqa: BLE001 - the other parts are wanted all the more
        return f"not collected: {type(exc).__name__}: {exc}\n"


def _clean(text: str) -> str:
    # Line by line: what is masked by its neighbourhood must not hide the rest of a file.
    return "".join(redacted(mask_url(line)) for line in text.splitlines(keepends=True))


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode() + "\n"


async def _versions() -> str:
    needed = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    about = {
        "itdesk": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "packages": dict(sorted(needed.items())),
    }
    return _json(about)


async def _settings(settings: Settings) -> str:
    warnings = "".join(f"# warning: {warning}\n" for warning in settings.warnings)
    return warnings + show(settings)


async def _doctor(context: Context, settings: Settings) -> str:
    lines = []
    async for finding in findings(context, settings):
        lines.append(f"{'ok  ' if finding.ok else 'FAIL'} {finding.part}: {finding.said}")
        if not finding.ok:
            lines.append(f"     -> {finding.remedy}")
    return "\n".join(lines) + "\n"


async def _database(settings: Settings) -> str:
    async with database_url(settings) as url:
        conn: Any = await asyncpg.connect(url, timeout=_ASK_SECONDS)
        try:
            await conn.set_type_codec(
                "jsonb", schema="pg_catalog", encoder=orjson.dumps, decoder=orjson.loads
            )
            found: dict[str, Any] = {"server": await diagnosis.server(conn)}
            found["schema"] = asdict(await Migrations(url).status(conn))
            found["rows"] = await backups.counts(conn)
            found["journal"] = asdict(await backups.journal_facts(conn))
            found["violations"] = await backups.violations(conn)
            found["work"] = await diagnosis.work(conn)
            found["pause"] = await backups.pause(conn)
            found["backups"] = asdict(await backups.last_runs(conn))
        finally:
            conn.terminate()
    return _json(found)


async def _plugins(context: Context, settings: Settings) -> str:
    async with context.desk(settings) as desk:
        health = await desk.plugins.health()
        return _json(
            {
                "states": {n: str(status) for n, status in desk.plugins.status().items()},
                "health": {n: {"ok": h.ok, "reason": h.reason} for n, h in health.items()},
            }
        )


async def _asked(settings: Settings, path: str) -> str:
    """Return what the running daemon answers; its port must be the configured one."""
    server = settings.server
    scheme = "https" if server.tls_cert is not None else "http"
    url = f"{scheme}://{_ANYWHERE.get(server.host, server.host)}:{server.port}{path}"
    headers = {}
    if settings.metrics.token is not None:
        headers["Authorization"] = f"Bearer {settings.metrics.token.get_secret_value()}"
    timeout = aiohttp.ClientTimeout(total=_ASK_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            # Its own certificate, on its own host: who answers is not in doubt.
            http.get(url, headers=headers, ssl=False) as answer,
        ):
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        return f"no daemon answers at {url}: {exc}\n"


async def _journal() -> str:
    """Return the last lines that systemd's journal has of the service."""
    if shutil.which("journalctl") is None:
        return "there is no journalctl on this host\n"
    process = await asyncio.create_subprocess_exec(
        "journalctl", "--unit=itdesk", f"--lines={LOG_LINES}", "--output=cat", "--no-pager",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return output.decode(errors="replace")


async def _tail(path: Path) -> str:
    return await asyncio.to_thread(_last_lines, path)


def _last_lines(path: Path) -> str:
    if not path.is_file():
        return "there is no embedded database\n"
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    return "".join(lines[-LOG_LINES:])


COMMANDS: list[click.Command] = [diagnose]
