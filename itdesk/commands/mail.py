"""Looking after mail from the shell, and trying whether any can be sent."""

import click

from itdesk.commands.context import OPERATOR, Context, examples, run
from itdesk.model import Email, MailStatus
from itdesk.store.paging import Window


@click.group()
def mail() -> None:
    """Look after outgoing mail."""


@mail.command(epilog=examples("itdesk mail test you@example.org"))
@click.argument("address")
@click.pass_obj
def test(context: Context, address: str) -> None:
    """Send a mail to ADDRESS at once, past the queue, and say what came of it."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            click.echo(await desk.mail.check())
            click.echo(f"taken over: {await desk.mail.send_test(OPERATOR, address)}")

    run(work())


@mail.command("list", epilog=examples("itdesk mail list --status failed --limit 20"))
@click.option(
    "--status", type=click.Choice([status.value for status in MailStatus]), help="Only these."
)
@click.option("--to", help="Only mails to this address.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many."
)
@click.pass_obj
def list_mails(context: Context, status: str | None, to: str | None, limit: int) -> None:
    """Print mails, the newest first: id, status, kind, address, attempts, why the last failed."""
    settings = context.settings()
    wanted = MailStatus(status) if status is not None else None

    async def work() -> None:
        async with context.desk(settings) as desk:
            page = await desk.mail.list(OPERATOR, Window(limit=limit), status=wanted, to=to)
        for one in page.items:
            click.echo(_line(one))

    run(work())


@mail.command(epilog=examples("itdesk mail retry --all-failed"))
@click.argument("ids", nargs=-1)
@click.option("--all-failed", is_flag=True, help="Every mail that failed.")
@click.pass_obj
def retry(context: Context, ids: tuple[str, ...], all_failed: bool) -> None:
    """Let mails that failed or were skipped be sent after all."""
    if bool(ids) == all_failed:
        raise click.UsageError("name the mails, or say --all-failed")
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            wanted, window = list(ids), Window(limit=200)
            while all_failed:
                page = await desk.mail.list(OPERATOR, window, status=MailStatus.FAILED, to=None)
                wanted += [str(one.id) for one in page.items]
                if page.next_cursor is None:
                    break
                window = Window(limit=200, cursor=page.next_cursor)
            for email_id in wanted:
                click.echo(_line(await desk.mail.retry(OPERATOR, email_id)))

    run(work())


def _line(one: Email) -> str:
    why = f"  {one.last_error}" if one.last_error else ""
    return f"{one.id}  {one.status:<7}  {one.kind:<14}  {one.to_address}  {one.attempts}{why}"


COMMANDS: list[click.Command] = [mail]
