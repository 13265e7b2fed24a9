"""The keys that sign access tokens: which there are, a new one, and the end of an old one."""

from datetime import timedelta

import click

from itdesk.commands.context import Context, examples, run
from itdesk.config import Settings
from itdesk.desk.keyfile import KeyFile, configured
from itdesk.desk.keys import Keys
from itdesk.errors import ConfigError, Invalid
from itdesk.runtime.clock import Clock

# Beyond the lifetime of a token: until the last daemon has noticed, it signs with the old key.
MARGIN_MINUTES = 5


@click.group()
def keys() -> None:
    """List, replace and retire the keys that sign access tokens."""


@keys.command("list", epilog=examples("itdesk keys list"))
@click.pass_obj
def list_keys(context: Context) -> None:
    """List the keys: id, algorithm, and until when each is good."""
    settings = context.settings()

    async def work() -> None:
        _show(_keys(settings)[0])

    run(work())


@keys.command(epilog=examples("itdesk keys rotate", "itdesk keys rotate --overlap 60"))
@click.option(
    "--overlap",
    type=click.IntRange(min=1),
    metavar="MINUTES",
    help="How long the old key still verifies [5 longer than an access token lives].",
)
@click.pass_obj
def rotate(context: Context, overlap: int | None) -> None:
    """Sign with a new key from now on; running daemons take it over within seconds."""
    settings = context.settings()
    lifetime = settings.auth.access_token_expire_minutes

    async def work() -> None:
        minutes = lifetime + MARGIN_MINUTES if overlap is None else overlap
        if minutes < lifetime:
            raise Invalid.field(
                "--overlap",
                f"must be {lifetime} or more, for so many minutes an access token lives;"
                " to end a stolen key at once, rotate, then itdesk keys retire <its id>",
            )
        now = Clock().now()
        later = now + timedelta(minutes=minutes)
        _show(_file(settings).rotate(now=now, not_after=later))

    run(work())


# One id in sixty-four begins with a dash, and is no option for that.
@keys.command(
    epilog=examples("itdesk keys retire 3f9c2a1b"),
    context_settings={"ignore_unknown_options": True},
)
@click.argument("kid")
@click.pass_obj
def retire(context: Context, kid: str) -> None:
    """Let an old key verify nothing any more, before its time is over."""
    settings = context.settings()

    async def work() -> None:
        _show(_file(settings).retire(kid, now=Clock().now()))

    run(work())


def _keys(settings: Settings) -> tuple[Keys, KeyFile | None]:
    secret = settings.auth.jwt_secret
    return configured(
        algorithm=settings.auth.jwt_algorithm,
        secret=secret.get_secret_value() if secret else None,
        path=settings.jwt_key_path,
    )


def _file(settings: Settings) -> KeyFile:
    if settings.auth.jwt_secret is not None:
        _, file = _keys(settings)
        if file is None:
            raise ConfigError(
                "auth.jwt_secret is the key that signs: change it where it is set, and restart."
                " Only a key in a file is rotated with an overlap."
            )
    return KeyFile(settings.jwt_key_path, settings.auth.jwt_algorithm)


def _show(found: Keys) -> None:
    now = Clock().now().timestamp()
    click.echo(f"{found.signing.kid}  {found.signing.algorithm}  signs")
    for key in found.retired:
        left = (key.not_after - now) / 60
        until = f"verifies for {left:.0f} more minutes" if left > 0 else "is over"
        click.echo(f"{key.kid}  {key.algorithm}  {until}")


COMMANDS: list[click.Command] = [keys]
