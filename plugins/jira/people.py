"""Who of the desk is who in Jira: by mail, else by the exact name, and never by the first hit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from itdesk.remote import RemotePerson

from .client import Client
from .failures import Missing, Refused
from .mapping import person_of

if TYPE_CHECKING:
    from itdesk.desk.outbound import Outbound
    from itdesk.store.pushes import Agent


@dataclass(frozen=True, slots=True)
class Account:
    """An account: how Jira wants it to be named, and as whom it speaks of it."""

    named: dict[str, Any]
    person: RemotePerson


class People:
    """Finds people's accounts, and remembers them."""

    def __init__(self, client: Client, outbound: "Outbound") -> None:
        self._client = client
        self._outbound = outbound

    async def of(self, user_id: UUID) -> Account | None:
        """Return somebody's account, or None when Jira does not know them."""
        agents = await self._outbound.agents(user_id)
        if not agents:
            return None
        (agent,) = agents
        cloud = await self._client.dialect() == "cloud"
        if cloud and agent.account is not None:
            return Account({"accountId": agent.account}, RemotePerson(agent.name, agent.account))
        found = await self.find(agent)
        name, person = named(found, cloud=cloud), person_of(found)
        return Account(name, person) if name is not None and person is not None else None

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
