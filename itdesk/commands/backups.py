"""Backups from the shell: make one, prove one, restore one, and let work go on after it."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from itdesk import assembly
from itdesk.commands.context import Context, examples, run
from itdesk.commands.exits import FAILURE, INCOMPLETE
from itdesk.commands.progress import Bar
from itdesk.config import Settings
from itdesk.desk import manifest as on_disk
from itdesk.desk import restoring
from itdesk.desk.manifest import Manifest
from itdesk.runtime.postgres import EmbeddedPostgres
from itdesk.store import pgtools
from itdesk.store.opening import database_url

_PATH = click.Path(path_type=Path, file_okay=False)


class _Backup(click.Group):
    """`backup DIR` makes one; `backup verify DIR` and `backup list DIR` are commands beside it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Backup)
def backup() -> None:
    """Make a backup in a new directory below DIR: `itdesk backup DIR`.

    \b
    itdesk backup /srv/backups --keep 14     a backup; the newest 14 are kept
    itdesk backup list /srv/backups          what is there
    itdesk backup verify /srv/backups/2026-01-31T020000Z-1a2b3c
    """


@backup.command(epilog=examples("itdesk backup /srv/backups --keep 14"))
@click.argument("directory", type=_PATH)
@click.option("--keep", type=click.IntRange(1), help="Then remove all but the newest so many.")
@click.option("--with-secrets", is_flag=True, help="Include the configuration file as it is.")
@click.pass_obj
def make(context: Context, directory: Path, keep: int | None, with_secrets: bool) -> None:
    """Make a backup in a new directory below DIRECTORY, beside the daemon or without it.

    Ends with 0, or with 3 when files of tickets are missing in the storage: the backup is there
    all the same, and names them.
    """
    settings = context.settings()

    async def work() -> tuple[Path, Manifest]:
        async with context.desk(settings) as desk:
            with Bar() as bar:
                return await desk.backups.make(
                    directory, keep=keep or 0, with_secrets=with_secrets, progress=bar.tell
                )

    path, made = run(work())
    click.echo(str(path))
    click.echo(
        f"{made.facts.tables.get('tickets', 0)} tickets, {len(made.objects)} files,"
        f" {made.bytes} bytes, as of {made.made_at:%Y-%m-%d %H:%M:%S} UTC",
        err=True,
    )
    _tell_secrets(settings, path, made)
    for lost in made.lost:
        click.echo(f"not in it: attachment {lost.attachment} ({lost.why}): {lost.key}", err=True)
    if made.failures:
        sys.exit(INCOMPLETE)


def _tell_secrets(settings: Settings, path: Path, made: Manifest) -> None:
    if any(name.startswith(on_disk.KEYS) for name in made.files):
        where = path / on_disk.KEYS
        click.echo(f"{where} holds signing keys, readable by you alone: keep it so", err=True)
    if settings.auth.jwt_secret is not None and f"{on_disk.KEYS}/itdesk.toml" not in made.files:
        click.echo(
            "auth.jwt_secret is not in it: without it second factors are lost. Keep your"
            " configuration too, or use --with-secrets",
            err=True,
        )


@backup.command("list", epilog=examples("itdesk backup list /srv/backups"))
@click.argument("directory", type=_PATH)
def list_backups(directory: Path) -> None:
    """Print the whole backups in DIRECTORY, the oldest first; unfinished ones are none."""
    found = on_disk.whole_backups(directory)
    if not found:
        raise click.ClickException(f"There is no whole backup in {directory}.")
    for path in found:
        try:
            made = on_disk.read(path)
        except on_disk.BackupBroken as exc:
            click.echo(f"{path}\tbroken: {exc.message}")
            continue
        click.echo(
            f"{path}\t{made.made_at:%Y-%m-%dT%H:%M:%SZ}\t{made.facts.tables.get('tickets', 0)}"
            f" tickets\t{len(made.objects)} files\t{made.bytes} bytes\t{len(made.failures)} missing"
        )


@backup.command(epilog=examples("itdesk backup verify /srv/backups/2026-01-31T020000Z-1a2b3c"))
@click.argument("directory", type=_PATH)
@click.option("--scratch", metavar="URL", help="An empty database to try it in [one of its own].")
def verify(directory: Path, scratch: str | None) -> None:
    """Read every byte of the backup DIRECTORY, restore it into a scratch database, and compare.

    The scratch database is a server of its own that lives as long as this takes, or the empty
    database that --scratch names.
    """

    async def work() -> tuple[Manifest, list[str]]:
        made = on_disk.read(directory)
        with Bar() as bar:
            await on_disk.check(directory, made, bar.tell)
            async with _scratch(scratch, made) as url:
                await restoring.require_empty(url, replace=False)
                await restoring.restore_database(url, directory, made, bar.tell)
                return made, await restoring.differences(url, made)

    made, wrong = run(work())
    for difference in wrong:
        click.echo(difference, err=True)
    for lost in made.failures:
        click.echo(f"not in it: attachment {lost.attachment} ({lost.why}): {lost.key}", err=True)
    if wrong:
        click.echo(f"{directory} does not restore as it should: use another backup", err=True)
        sys.exit(FAILURE)
    click.echo(
        f"{directory} restores: {made.facts.tables.get('tickets', 0)} tickets,"
        f" {made.facts.journal['events']} events, {len(made.objects)} files, all as they were"
    )
    if made.failures:
        sys.exit(INCOMPLETE)


@asynccontextmanager
async def _scratch(given: str | None, made: Manifest) -> AsyncIterator[str]:
    if given is not None:
        yield given
        return
    wanted = made.facts.server
    tools = await pgtools.find(wanted, at_least=made.facts.tool, with_server=True)
    home = Path(tempfile.mkdtemp(prefix="itdesk-verify-", dir="/tmp"))
    try:
        async with EmbeddedPostgres(home, bindir=tools.bindir, durable=False) as server:
            yield server.url
    finally:
        await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)


@click.command(epilog=examples("itdesk restore /srv/backups/2026-01-31T020000Z-1a2b3c"))
@click.argument("directory", type=_PATH)
@click.option("--replace-everything", is_flag=True, help="Destroy what is in the database now.")
@click.pass_obj
def restore(context: Context, directory: Path, replace_everything: bool) -> None:
    """Restore the backup DIRECTORY into the configured database and storage, both empty.

    Everything is verified first. Nobody stays signed in, and no mail, webhook or Jira request goes
    out until `itdesk resume`. Cut short, it goes on where it was when it is run again.
    """
    settings = context.settings()

    async def work() -> tuple[Manifest, dict[str, int]]:
        made = on_disk.read(directory)
        with Bar() as bar:
            await on_disk.check(directory, made, bar.tell)
            _restore_keys(settings, directory, made)
            async with database_url(settings) as url:
                replace = replace_everything
                if not await restoring.unfinished(url, made):
                    await restoring.require_empty(url, replace=replace)
                    if not replace:
                        await _require_empty_storage(settings, url, made)
                    await restoring.restore_database(url, directory, made, bar.tell)
                async with context.desk(settings) as desk:
                    await restoring.restore_files(desk.storage, directory, made, bar.tell)
                    return made, await restoring.finish(desk.db, desk.storage, made)

    made, owed = run(work())
    click.echo(f"restored: the desk is as it was at {made.made_at:%Y-%m-%d %H:%M:%S} UTC")
    for line in _next_steps(made, owed):
        click.echo(line)
    if made.failures:
        for lost in made.failures:
            click.echo(f"lost: attachment {lost.attachment} ({lost.why}): {lost.key}", err=True)
        sys.exit(INCOMPLETE)


async def _require_empty_storage(settings: Settings, url: str, made: Manifest) -> None:
    """Look into the storage before there is a desk: with no plugin but the one that stores."""
    storing = ("filesystem", "s3")
    plugins = {name: raw for name, raw in settings.plugins.items() if name in storing}
    alone = settings.model_copy(update={"plugins": plugins})
    async with assembly.open_desk(alone, url) as desk:
        await restoring.require_empty_storage(desk.storage, made)


def _restore_keys(settings: Settings, directory: Path, made: Manifest) -> None:
    """Put the signing keys where the settings want them; keys that are there are left."""
    folder = settings.jwt_key_path.parent
    for name in made.files:
        part, _, file = name.partition("/")
        if part != on_disk.KEYS or file == "itdesk.toml":
            continue
        target = folder / file
        saved = (directory / name).read_bytes()
        if target.exists():
            if target.read_bytes() != saved:
                click.echo(f"{target} is another key and was left: second factors need"
                           f" {directory / name}", err=True)  # fmt: skip
            continue
        folder.mkdir(parents=True, exist_ok=True)
        target.touch(0o600)
        target.write_bytes(saved)


def _next_steps(made: Manifest, owed: dict[str, int]) -> list[str]:
    mails = owed.pop("emails", 0)
    waiting = ", ".join(f"{count} {kind}" for kind, count in sorted(owed.items())) or "none"
    steps = [
        "",
        "Next:",
        "1. itdesk doctor            every part is tried for real",
        "2. systemctl start itdesk   people can sign in and work; nobody is signed in yet",
        f"3. {mails} mails and these jobs wait, some of which may have been done since the backup:"
        f" {waiting}",
        "   itdesk resume               sends them",
        "   itdesk resume --drop-mail   gives the mails up and lets the rest go on",
        "Passwords and API tokens are as they were then: revoke again what was revoked since.",
    ]
    if made.facts.violations and any(made.facts.violations.values()):
        steps.append("The desk was not sound when it was backed up: see manifest.json.")
    return steps


@click.command(
    epilog=examples(
        "itdesk resume", "itdesk resume --drop-mail      # what waits was sent before the restore"
    )
)
@click.option("--drop-mail", is_flag=True, help="Give up the mail that waits instead.")
@click.pass_obj
def resume(context: Context, drop_mail: bool) -> None:
    """After a restore: let mail, webhooks and other requests to the outside go out again."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            pause, dropped = await restoring.resume(desk.db, drop_mail=drop_mail)
        since = f"{pause.since:%Y-%m-%d %H:%M} UTC"
        click.echo(f"resumed; nothing went out since {since}")
        if drop_mail:
            click.echo(f"{dropped} mails were given up")

    run(work())


COMMANDS: list[click.Command] = [backup, restore, resume]
