"""Saved views: everybody keeps some for themselves, managers share theirs."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from itdesk.errors import Conflict, NotFound
from itdesk.model import Caller, Event, Role, new_id
from itdesk.store import views
from itdesk.store.db import Database
from itdesk.store.views import SavedView


class Views:
    """The saved views that a caller has, and those that are shared."""

    def __init__(self, db: Database, *, most: int) -> None:
        self._db = db
        self._most = most

    async def list(self, caller: Caller) -> Sequence[SavedView]:
        """Return the caller's own views, then the shared ones, by name."""
        async with self._db.connection() as conn:
            return await views.list_for(conn, _id(caller))

    async def get(self, caller: Caller, ref: str) -> SavedView:
        """Return a view of the caller's own, or a shared one."""
        async with self._db.connection() as conn:
            return await views.get(conn, _id(caller), _view_id(ref))

    async def create(
        self, caller: Caller, *, name: str, query: Mapping[str, Any], shared: bool
    ) -> SavedView:
        """Keep a query under a name; only managers and above share theirs."""
        if shared:
            caller.require(Role.MANAGER, "share views")
        me = _id(caller)
        async with self._db.transaction() as tx:
            if await views.count_of(tx.conn, me) >= self._most:
                raise Conflict(
                    f"You have {self._most} views already: delete one first.",
                    code="E_VIEW_TOO_MANY",
                )
            id = new_id()
            await views.create(tx.conn, id=id, owner=me, name=name, query=query, shared=shared)
            view = await views.get(tx.conn, me, id)
            if shared:
                tx.record(_event(caller, "view.shared", view))
        return view

    async def update(self, caller: Caller, ref: str, wanted: Mapping[str, Any]) -> SavedView:
        """Change some fields of a view: one's own, or as a manager a shared one."""
        me = _id(caller)
        async with self._db.transaction() as tx:
            before = await views.get(tx.conn, me, _view_id(ref), lock=True)
            self._require_may_change(caller, before)
            shared = wanted.get("shared", before.shared)
            if shared and not before.shared:
                caller.require(Role.MANAGER, "share views")
            await views.update(
                tx.conn,
                before.id,
                name=wanted.get("name", before.name),
                query=wanted.get("query", before.query),
                shared=shared,
            )
            # A manager who takes another's view back no longer sees it.
            after = await views.get(tx.conn, before.owner_id, before.id)
            if before.shared or after.shared:
                tx.record(_event(caller, "view.changed", after))
        return after

    async def delete(self, caller: Caller, ref: str) -> None:
        """Forget a view: one's own, or as a manager a shared one."""
        async with self._db.transaction() as tx:
            view = await views.get(tx.conn, _id(caller), _view_id(ref), lock=True)
            self._require_may_change(caller, view)
            await views.delete(tx.conn, view.id)
            if view.shared:
                tx.record(_event(caller, "view.deleted", view))

    def _require_may_change(self, caller: Caller, view: SavedView) -> None:
        if view.owner_id != caller.user_id:
            caller.require(Role.MANAGER, "change the views of others")


def _event(caller: Caller, type: str, view: SavedView) -> Event:
    about = {"view_id": str(view.id), "name": view.name, "shared": view.shared}
    return Event.by(caller, type, data=about)


def _id(caller: Caller) -> UUID:
    if caller.user_id is None:
        raise NotFound.of("view")
    return caller.user_id


def _view_id(ref: str) -> UUID:
    try:
        return UUID(ref)
    except ValueError:
        raise NotFound.of("view") from None
