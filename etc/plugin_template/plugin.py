"""The plugin example: say here in one sentence what it does.

Copy it to a directory that is named in `[plugin_host] directories`, and give it a section:

    [plugins.example]
    greeting = "Good morning"
"""

from collections.abc import Sequence

from pydantic import BaseModel, SecretStr

from itdesk.hookspecs import JobType, hookimpl
from itdesk.runtime.log import get_logger

log = get_logger("plugin.example")


class Settings(BaseModel):
    """The section; what is a SecretStr is masked in logs and in `itdesk config show`."""

    greeting: str = "Hello"
    token: SecretStr | None = None


class Plugin:
    """Forbids tickets without a real title, and does a job for each new one."""

    name, itdesk_api, Settings = "example", 1, Settings

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.greeted: list[str] = []

    @hookimpl
    def itdesk_validate_ticket(self, after) -> Sequence[str]:
        """An auditor: refuse what should not be; no effects of its own."""
        return ["Say what is wrong, not only that it is."] if after.title == "help" else []

    @hookimpl
    def itdesk_jobs(self, desk) -> Sequence[JobType]:
        """Work that must happen: queued with the change, done at least once."""

        async def greet(job) -> None:
            # The same at every attempt: send it along, so that the other side knows repetitions.
            async with job.sending() as key:
                self.greeted.append(f"{self.settings.greeting} {job.args['ticket_id']} {key}")
            log.info("greeted", job=key)

        return [JobType(name="example.greet", handle=greet, on_events=("ticket.created",))]
