"""Who of the desk is who in Jira: by mail, else by the exact name, and never by the first hit."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .client import Client
from .failures import Missing, Refused
from .mapping import person_of

if TYPE_CHECKING:
    from itdesk.desk.outbound import Outbound
    from itdesk.store.pushes import Agent


class People:
    """Finds people's accounts, and remembers them."""

    def __init__(self, client: Client, outbound: "Outbound") -> None:
        self._client = client
        self._outbound = outbound

    async def of(self, user_id: UUID) -> dict[str, Any] | None:
        """Return how Jira names somebody as an assignee, or None when it does not know them."""
        agents = {one.id: one for one in await self._outbound.agents()}
        agent = agents.get(user_id)
        if agent is None:
            return None
        if agent.account is None or await self._client.dialect() == "datacenter":
            return named(await self.find(agent), cloud=await self._client.dialect() == "cloud")
        return {"accountId": agent.account}

    async def find(self, agent: "Agent", *, note: bool = True) -> Mapping[str, Any] | None:
        """Look for somebody's account in Jira; `note` it when it is surely theirs."""
        try:
            found = match(agent, await self._client.people(agent.email))
            if found is None:
                found = match(agent, await self._client.people(agent.name))
        except (Missing, Refused):
            return None
        person = person_of(found)
        if note and person is not None and person.account is not None:
            await self._outbound.tie_account(agent.id, person.account, person.email)
        return found


def match(agent: "Agent", found: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return who of these is somebody: the one with their address, else the only one so named."""
    active = [one for one in found if one.get("active", True) is not False]
    people = [(one, person_of(one)) for one in active]
    for one, person in people:
        if person is not None and person.email == agent.email.lower():
            return one
    same = [
        one
        for one, person in people
        if person is not None
        and " ".join(person.name.split()).casefold() == " ".join(agent.name.split()).casefold()
    ]
    return same[0] if len(same) == 1 else None


def named(found: Mapping[str, Any] | None, *, cloud: bool) -> dict[str, Any] | None:
    """Return how Jira wants somebody to be named in a field."""
    name = "accountId" if cloud else "name"
    value = found.get(name) if found is not None else None
    return {name: value} if isinstance(value, str) and value else None
