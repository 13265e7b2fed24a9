"""What the desk holds about a person: handed over whole, or made nameless, when they ask for it.

Tickets, comments and files are the desk's work and stay; the person's name and addresses go, from
them and from the journal, which keeps that an erasure happened and by whom.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson

from itdesk.desk.accounts import require_another_admin
from itdesk.desk.sessions import Sessions
from itdesk.errors import Conflict, DeskError, NotFound
from itdesk.frozen import frozen
from itdesk.hookspecs import Storage
from itdesk.model import Caller, Event, Role
from itdesk.runtime.log import get_logger
from itdesk.store import backups, personal, users
from itdesk.store.db import Database
from itdesk.store.personal import CleanFile, Known

ERASED = "Erased person"

log = get_logger("people")


@frozen
class Part:
    """One file of an export: its name, its size, and its bytes, to be read once."""

    name: str
    size: int
    chunks: AsyncIterator[bytes]


class People:
    """Answers those who ask what is known of them, and those who ask to be forgotten."""

    def __init__(self, db: Database, storage: Storage, sessions: Sessions) -> None:
        self._db = db
        self._storage = storage
        self._sessions = sessions

    async def find(self, caller: Caller, email: str) -> UUID:
        """Return who has this address."""
        caller.require(Role.ADMIN, "look into other people's data")
        async with self._db.connection() as conn:
            account = await users.account_of(conn, email)
        if account is None:
            raise NotFound.of("user")
        return account.user.id

    async def export(self, caller: Caller, ref: str | UUID) -> AsyncIterator[Part]:
        """Yield everything that the desk holds about a person, as JSON files and their own files.

        The last part, index.json, says what there is; a file that cannot be read is named there.
        """
        caller.require(Role.ADMIN, "look into other people's data")
        user_id = _id(ref)
        async with self._db.connection() as conn:
            person = await _known(conn, user_id)
            tables = await backups.tables(conn)
        async with self._db.transaction() as tx:
            tx.record(Event.by(caller, "user.exported", data={"user_id": str(user_id)}))
        index: dict[str, int] = {}
        # A connection is lent for each page only: whoever reads slowly holds none.
        async for name, rows in self._rows(person, tables):
            index[name] = index.get(name, 0) + 1
            yield _json(f"{name}-{index[name]:04d}.json", rows)
        unread = []
        async for file in self._files(user_id):
            part = await self._opened(file)
            if part is None:
                unread.append(str(file.id))
            else:
                yield part
        about = {"user_id": str(user_id), "names": person.names, "addresses": person.emails}
        yield _json("index.json", {**about, "pages": index, "files_not_readable": unread})

    async def _rows(
        self, person: Known, tables: list[str]
    ) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
        for kind in personal.kinds(tables):
            after = UUID(int=0)
            while True:
                async with self._db.connection() as conn:
                    rows = await personal.page(conn, person, kind, after=after)
                if rows:
                    yield kind, rows
                if len(rows) < personal.PAGE:
                    break
                after = rows[-1]["id"]

    async def _files(self, user_id: UUID) -> AsyncIterator[CleanFile]:
        after = UUID(int=0)
        while True:
            async with self._db.connection() as conn:
                files = await personal.clean_files(conn, user_id, after=after)
            for file in files:
                yield file
            if not files:
                return
            after = files[-1].id

    async def _opened(self, file: CleanFile) -> Part | None:
        """Return a file ready to be read, or None when the storage does not have it as it was."""
        try:
            stored = await self._storage.stat(file.key)
        except DeskError as exc:
            log.warning("file not exported", attachment=file.id, problem=exc.message)
            return None
        if stored is None or stored.size != file.size:
            return None
        name = file.filename.replace("/", "_").replace("\\", "_")[-100:]
        return Part(f"files/{file.id}-{name}", file.size, self._storage.read(file.key))

    async def erase(self, caller: Caller, ref: str | UUID) -> int:
        """Make a person nameless for good and end their account; return how many events that took.

        Once more does nothing more. Nobody erases themselves or the last administrator.
        """
        caller.require(Role.ADMIN, "erase people")
        user_id = _id(ref)
        if user_id == caller.user_id:
            raise Conflict("Nobody can erase themselves.", code="E_USER_SELF")
        async with self._db.transaction() as tx:
            person = await _known(tx.conn, user_id)
            erased = Event.by(caller, "user.erased", data={"user_id": str(user_id)})
            because = replace(caller, cause_id=erased.id)
            if person.has_account:
                await require_another_admin(tx, caller, user_id, {"is_active": False})
                await users.hold_assigned(tx.conn, user_id)
                await users.hold(tx.conn, user_id)
                gone = await users.unassign_everywhere(tx.conn, because, user_id)
                tx.record(erased, *gone)
            await personal.unname_work(tx.conn, person, ERASED)
            await personal.unname_suggestions(tx.conn, person)
            await personal.unname_mail(tx.conn, person)
            changed = await personal.unname_journal(tx.conn, person, ERASED)
            if person.has_account:
                await users.delete(tx.conn, user_id)
                self._sessions.refresh_state(tx, user_id)
            elif changed:
                tx.record(erased)
        return changed


async def _known(conn: object, user_id: UUID) -> Known:
    person = await personal.known(conn, user_id)
    if person is None:
        raise NotFound.of("user")
    return person


def _id(ref: str | UUID) -> UUID:
    try:
        return ref if isinstance(ref, UUID) else UUID(ref)
    except ValueError:
        raise NotFound.of("user") from None


def _json(name: str, value: object) -> Part:
    data = orjson.dumps(value, option=orjson.OPT_INDENT_2)

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    return Part(name, len(data), chunks())
