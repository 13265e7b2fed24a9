"""Projects: the series in which tickets are numbered, and whose keys tickets bear for good."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from itdesk.errors import Conflict, NotFound
from itdesk.model import Caller, Change, Event, Project, Role, new_id
from itdesk.store import projects
from itdesk.store.db import Database
from itdesk.store.paging import Page, Window

_TOLD = ("key", "name", "description")


class Projects:
    """Opening, reading, changing and closing projects, on behalf of a caller."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._default: str | None = None

    async def ensure_default(self, key: str, first_number: int) -> None:
        """Make sure that there is a project for tickets that name none."""
        async with self._db.transaction() as tx:
            await projects.ensure(tx.conn, id=new_id(), key=key, first_number=first_number)
        self._default = key

    async def list(self, window: Window) -> Page[Project]:
        """Return one page of the projects, in the order of their keys."""
        async with self._db.connection() as conn:
            page = await projects.list_page(conn, window)
            total = await projects.count(conn) if window.count else None
        return replace(page, total=total)

    async def get(self, ref: str | UUID) -> Project:
        """Return a project."""
        async with self._db.connection() as conn:
            return await projects.get(conn, _id(ref))

    async def create(self, caller: Caller, key: str, name: str, description: str = "") -> Project:
        """Open a project whose first ticket will be number 1."""
        caller.require(Role.MANAGER, "open projects")
        async with self._db.transaction() as tx:
            project = await projects.create(
                tx.conn,
                id=new_id(),
                key=key,
                name=name,
                description=description,
                created_by=caller.user_id,
            )
            tx.record(Event.by(caller, "project.created", data=_about(project)))
        return project

    async def update(self, caller: Caller, ref: str | UUID, wanted: Mapping[str, Any]) -> Project:
        """Change some fields of a project; the key only while no ticket bears it."""
        caller.require(Role.MANAGER, "change projects")
        async with self._db.transaction() as tx:
            before = await projects.get(tx.conn, _id(ref), lock=True)
            changed = {n: v for n, v in wanted.items() if getattr(before, n) != v}
            if not changed:
                return before
            if "key" in changed:
                self._require_free(before, "its key stays")
                if await projects.has_tickets(tx.conn, before.id):
                    raise _not_empty("Its tickets bear the key: it stays.")
            after = await projects.update(tx.conn, before.id, changed)
            changes = tuple(
                Change(name, getattr(before, name), getattr(after, name))
                for name in _TOLD
                if name in changed
            )
            event = Event.by(caller, "project.updated", changes=changes, data=_about(after))
            tx.record(event)
        return after

    async def delete(self, caller: Caller, ref: str | UUID) -> None:
        """Close a project that has no tickets."""
        caller.require(Role.MANAGER, "delete projects")
        async with self._db.transaction() as tx:
            project = await projects.get(tx.conn, _id(ref), lock=True)
            if await projects.has_tickets(tx.conn, project.id):
                raise _not_empty("A project that has tickets stays.")
            self._require_free(project, "it stays")
            await projects.delete(tx.conn, project.id)
            tx.record(Event.by(caller, "project.deleted", data=_about(project)))

    def _require_free(self, project: Project, consequence: str) -> None:
        if project.key == self._default:
            raise Conflict(
                f"Tickets that name no project are opened in this one: {consequence}.",
                code="E_PROJECT_IS_DEFAULT",
            )
        if project.source != "local":
            raise Conflict(
                f"This project mirrors one of {project.source}: {consequence}.",
                code="E_PROJECT_IS_MIRROR",
            )


def _id(ref: str | UUID) -> UUID:
    try:
        return ref if isinstance(ref, UUID) else UUID(ref)
    except ValueError:
        raise NotFound.of("project") from None


def _about(project: Project) -> dict[str, str]:
    return {"project_id": str(project.id), "key": project.key, "name": project.name}


def _not_empty(message: str) -> Conflict:
    return Conflict(message, code="E_PROJECT_NOT_EMPTY")
