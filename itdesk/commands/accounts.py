"""People and tickets from the shell, for scripts and for the first steps."""

import sys
from typing import Any, TypeVar
from uuid import UUID

import click
import orjson
from pydantic import BaseModel

from itdesk.api.payload import parse
from itdesk.api.tickets import TicketBody
from itdesk.api.tokens import TokenRequest
from itdesk.api.users import UserOpening
from itdesk.commands.context import OPERATOR, Context, examples, run
from itdesk.desk import Desk
from itdesk.desk.accounts import NewUser
from itdesk.desk.api_tokens import LONGEST_DAYS, NewToken
from itdesk.errors import NotFound
from itdesk.model import Caller, Grant, Priority, Source, User

M = TypeVar("M", bound=BaseModel)


@click.group()
def user() -> None:
    """Open and unlock accounts, and help who lost a second factor."""


@user.command(
    epilog=examples(
        "itdesk user create --email robin@example.org --role agent --token",
        'echo "$PASSWORD" | itdesk user create --email alice@example.org --password-stdin',
    )
)
@click.option("--email", required=True, help="The address to sign in with.")
@click.option("--name", help="How the person is called [the part before the @].")
@click.option("--role", default="user", show_default=True, help="user, agent, manager or admin.")
@click.option("--department", help="Where the person works.")
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin's first line.")
@click.option("--token", is_flag=True, help="Print an access token, alone, on stdout.")
@click.pass_obj
def create(
    context: Context,
    email: str,
    name: str | None,
    role: str,
    department: str | None,
    password_stdin: bool,
    token: bool,
) -> None:
    """Open an account; one that is there already is left as it is."""
    settings = context.settings()
    password = sys.stdin.readline().rstrip("\r\n") if password_stdin else None

    async def work() -> None:
        wanted = _checked(
            UserOpening,
            email=email,
            name=name or email.partition("@")[0],
            role=role,
            password=password,
            department=department,
        )
        async with context.desk(settings) as desk:
            person, is_new = await _opened(desk, wanted)
            if not is_new:
                click.echo(f"{person.email} has an account already; it was left as it is", err=True)
            if token:
                click.echo((await desk.sessions.issue_for(person)).access_token)
            elif is_new:
                click.echo(f"{person.email} is {person.role}, id {person.id}")

    run(work())


async def _opened(desk: Desk, wanted: UserOpening) -> tuple[User, bool]:
    try:
        return await desk.accounts.find(wanted.email), False
    except NotFound:
        return await desk.accounts.create(
            OPERATOR, NewUser(**wanted.model_dump(exclude={"invite"}))
        ), True


@user.command(epilog=examples("itdesk user unlock alice@example.org"))
@click.argument("email")
@click.pass_obj
def unlock(context: Context, email: str) -> None:
    """Let somebody sign in again at once after too many wrong passwords."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            person = await desk.accounts.find(email)
            lifted = await desk.accounts.unlock(OPERATOR, person.id)
            state = "is unlocked" if lifted else "was not locked"
            click.echo(f"{person.email} {state}")

    run(work())


@click.group()
def token() -> None:
    """Issue access tokens, and API tokens for scripts."""


@token.command(epilog=examples("itdesk token issue --email robin@example.org"))
@click.option("--email", required=True, help="Whose token.")
@click.pass_obj
def issue(context: Context, email: str) -> None:
    """Print an access token for somebody, alone, on stdout."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            person = await desk.accounts.find(email)
            click.echo((await desk.sessions.issue_for(person)).access_token)

    run(work())


@token.command(
    "create",
    epilog=examples(
        "itdesk token create --email robin@example.org --name nightly --scope read --days 90"
    ),
)
@click.option("--email", required=True, help="Whose token.")
@click.option("--name", required=True, help="What will use it.")
@click.option(
    "--scope",
    type=click.Choice([grant.value for grant in Grant]),
    default="read",
    show_default=True,
    help="What it may do.",
)
@click.option(
    "--days",
    type=click.IntRange(1, LONGEST_DAYS),
    help="How long it is good [auth.api_token_expire_days].",
)
@click.option("--without-end", is_flag=True, help="Let it never expire, where that is allowed.")
@click.pass_obj
def create_token(
    context: Context, email: str, name: str, scope: str, days: int | None, without_end: bool
) -> None:
    """Print an API token for a script, alone, on stdout; it is shown this once."""
    settings = context.settings()

    async def work() -> None:
        wanted = _checked(TokenRequest, name=name, scope=scope, expires_in_days=days)
        lasting = None if without_end else days or settings.auth.api_token_expire_days
        async with context.desk(settings) as desk:
            person = await desk.accounts.find(email)
            new = NewToken(wanted.name, Grant(wanted.scope), lasting)
            click.echo((await desk.api_tokens.create(OPERATOR, new, owner=person.id)).token)

    run(work())


@token.command("list", epilog=examples("itdesk token list --email robin@example.org"))
@click.option("--email", required=True, help="Whose tokens.")
@click.pass_obj
def list_tokens(context: Context, email: str) -> None:
    """List somebody's API tokens: id, scope, end, last use and address, name."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            person = await desk.accounts.find(email)
            for one in await desk.api_tokens.list(OPERATOR, person.id):
                end = f"{one.expires_at:%Y-%m-%d}" if one.expires_at else "never"
                used = f"{one.last_used_at:%Y-%m-%dT%H:%MZ}" if one.last_used_at else "unused"
                where = one.last_used_ip or "-"
                click.echo(f"{one.id}  {one.scope:<5}  {end:<10}  {used}  {where}  {one.name}")

    run(work())


@token.command(epilog=examples("itdesk token revoke 0198c0de-0000-7000-8000-000000000000"))
@click.argument("ids", nargs=-1, required=True, type=click.UUID)
@click.pass_obj
def revoke(context: Context, ids: tuple[UUID, ...]) -> None:
    """Revoke API tokens by their ids."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            for one in ids:
                await desk.api_tokens.revoke(OPERATOR, one)
                click.echo(f"{one} is revoked")

    run(work())


@user.command("reset-totp", epilog=examples("itdesk user reset-totp --email alice@example.org"))
@click.option("--email", required=True, help="Whose second factor.")
@click.pass_obj
def reset_totp(context: Context, email: str) -> None:
    """Take away somebody's second factor, who lost it, and end their sessions."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            person = await desk.accounts.find(email)
            removed = await desk.second_factors.reset(OPERATOR, person.id)
            done = "is gone; every session has ended" if removed else "was never set up"
            click.echo(f"the second factor of {person.email} {done}")

    run(work())


@click.group()
def ticket() -> None:
    """Open tickets."""


@ticket.command(
    "create",
    epilog=examples(
        "itdesk ticket create --title 'The printer is on fire' --priority high --tag fire"
    ),
)
@click.option("--title", required=True, help="What is wrong, in a line.")
@click.option("--description", default="", help="The whole story.")
@click.option(
    "--priority",
    default=Priority.MEDIUM.value,
    show_default=True,
    help="low, medium, high or critical.",
)
@click.option("--category", help="Such as hardware, network, security; none unless given.")
@click.option("--department", help="Whose matter it is.")
@click.option("--project", help="Key of the project [tickets.default_project].")
@click.option("--tag", "tags", multiple=True, help="May be given more than once.")
@click.option("--reporter", help="E-mail address of whom the ticket is for.")
@click.pass_obj
def create_ticket(context: Context, /, reporter: str | None, **fields: Any) -> None:
    """Open a ticket and print its key."""
    settings = context.settings()

    async def work() -> None:
        body = _checked(TicketBody, **{k: list(v) if k == "tags" else v for k, v in fields.items()})
        async with context.desk(settings) as desk:
            await desk.projects.ensure_default(
                settings.tickets.default_project, settings.tickets.first_number
            )
            caller = OPERATOR if reporter is None else await _as(desk, reporter)
            click.echo((await desk.tickets.create(caller, body.wanted())).key)

    run(work())


async def _as(desk: Desk, email: str) -> Caller:
    person = await desk.accounts.find(email)
    return Caller(person.id, person.name, person.role, Source.CLI, person.email)


def _checked(model: type[M], **given: Any) -> M:
    """Return what was typed as the API would take it, or raise Invalid with all problems."""
    said = {name: value for name, value in given.items() if value is not None}
    return parse(model, orjson.dumps(said))


COMMANDS: list[click.Command] = [token, ticket]
