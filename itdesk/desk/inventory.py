"""What the storage holds and what the rows say that it holds, held against each other.

An object is an orphan when no file can ever name it: it has no row, or its file was found clean
and is served from another object. It is removed only once it is older than anything that could be
on its way (`grace`): uploads, presigned addresses, scans. Removing by itself is held back where it
looks like a mistake: another desk uses the same storage, or much of what is there seems to be
nobody's, as after a restore of an older database.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from itdesk.config import Settings
from itdesk.desk.attachments import CLEAN, QUARANTINE
from itdesk.errors import Conflict
from itdesk.frozen import frozen
from itdesk.hookspecs import Listed, Storage
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics
from itdesk.store import events, inventory
from itdesk.store.db import Database
from itdesk.store.inventory import FIRST, LAST, Named, Place

DESKS, PROBES = "desks/", "check/"
# Longer than any request or scan may take; whatever is configured is added.
LONGEST_WRITE_SECONDS = 2 * 3600
# One sitting removes and names so many; the next goes on from there.
MOST = 10_000
MISTAKE_COUNT, MISTAKE_SHARE = 20, 0.1
PAGE = 1000

log = get_logger("storage")


@frozen
class Orphan:
    """An object that no file names, and why."""

    key: str
    size: int
    age: float
    why: str


@frozen
class Missing:
    """A clean file whose object is gone."""

    attachment_id: UUID
    ticket_key: str
    filename: str
    key: str


@dataclass(slots=True)
class Report:
    """What a look at everything came to."""

    objects: int = 0
    bytes: int = 0
    young: int = 0
    foreign: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    missing: int = 0
    removed: int = 0
    parts: int = 0
    elsewhere: dict[str, int] = field(default_factory=dict)
    held_back: str = ""
    removable: list[Orphan] = field(default_factory=list)


Finding = Orphan | Missing


class Inventory:
    """Looks for what is nobody's and for what is gone, and removes the former."""

    def __init__(
        self, db: Database, storage: Storage, settings: Settings, metrics: Metrics
    ) -> None:
        self._db = db
        self._storage = storage
        limits, scanner = settings.storage, settings.scanner
        on_its_way = limits.presign_expires_seconds + scanner.upload_grace_seconds
        on_its_way += scanner.lease_seconds + LONGEST_WRITE_SECONDS
        self.write_grace = float(on_its_way)
        self.grace = max(float(limits.orphan_seconds), self.write_grace)
        self._objects = metrics.gauge("itdesk_storage_objects", "Objects at the last look.")
        self._bytes = metrics.gauge("itdesk_storage_bytes", "Their bytes.")
        self._orphans = metrics.gauge(
            "itdesk_storage_orphans", "Objects that no file names, after the last look."
        )
        self._missing = metrics.gauge(
            "itdesk_storage_missing", "Clean files whose object is gone, at the last look."
        )
        self._removed = metrics.counter(
            "itdesk_storage_removed_total", "Objects that were nobody's and were removed."
        )

    async def look(
        self, report: Report, progress: Callable[[int], None] = lambda objects: None
    ) -> AsyncIterator[Finding]:
        """Yield every orphan and every missing object, and count into the report meanwhile."""
        await self._sign()
        for area in (QUARANTINE, PROBES):
            async for page in self._storage.list(area):
                for orphan in await self._orphans_of(page, report):
                    yield orphan
                progress(report.objects)
        place: Place = (FIRST, FIRST)
        async for page in self._storage.list(CLEAN):
            for orphan in await self._orphans_of(page, report):
                yield orphan
            upto = max((_place(each.key) or place for each in page), default=place)
            async for gone in self._missing_of(page, place, upto, report):
                yield gone
            place = max(place, upto)
            progress(report.objects)
        async for gone in self._missing_of([], place, (LAST, LAST), report):
            yield gone
        async with self._db.connection() as conn:
            report.elsewhere = await inventory.elsewhere(conn, self._storage.name)
        self._objects.set(report.objects)
        self._bytes.set(report.bytes)
        self._orphans.set(report.orphans)
        self._missing.set(report.missing)

    async def tidy(self) -> Report:
        """Look at everything, remove what is surely nobody's, and log the rest."""
        report = Report()
        shown = 0
        async for finding in self.look(report):
            if isinstance(finding, Missing) and shown < PAGE:
                shown += 1
                log.error(
                    "object missing",
                    attachment=finding.attachment_id,
                    ticket=finding.ticket_key,
                    key=finding.key,
                )
        report.held_back = self._looks_like_a_mistake(report)
        if not report.held_back:
            try:
                await self.remove(report)
            except Conflict as exc:
                report.held_back = exc.message
        if report.held_back and report.orphans:
            log.error("orphans not removed", orphans=report.orphans, problem=report.held_back)
        report.parts = await self._storage.sweep(older_than=self.write_grace)
        log.info(
            "storage looked through",
            objects=report.objects,
            young=report.young,
            orphans=report.orphans,
            missing=report.missing,
            removed=report.removed,
            parts=report.parts,
            elsewhere=report.elsewhere,
        )
        return report

    async def remove(self, report: Report) -> None:
        """Remove the orphans that were found, each looked up once more just before.

        Raises Conflict when another desk keeps its files in the same storage.
        """
        if others := await self._others():
            raise Conflict(
                "Another desk keeps its files in this storage, and what seems to be nobody's may be"
                f" its own: give it one of its own, or, if it is gone, delete {others[0]} there."
            )
        for start in range(0, len(report.removable), PAGE):
            batch = report.removable[start : start + PAGE]
            again = [Listed(each.key, each.size, each.age) for each in batch]
            for orphan in await self._unnamed(again):
                await self._storage.delete(orphan.key)
                report.removed += 1
                report.orphans -= 1
                report.orphan_bytes -= orphan.size
                self._removed.inc()
                log.info("orphan removed", key=orphan.key, size=orphan.size, why=orphan.why)
        report.removable.clear()
        self._orphans.set(report.orphans)

    def _looks_like_a_mistake(self, report: Report) -> str:
        share = report.orphans / max(1, report.objects)
        if report.orphans <= MISTAKE_COUNT or share <= MISTAKE_SHARE:
            return ""
        return (
            f"{report.orphans} of {report.objects} objects seem to be nobody's, as with an older or"
            " another database: look at `itdesk storage verify`, and if that is right run it with"
            " --delete-orphans"
        )

    async def _orphans_of(self, page: Sequence[Listed], report: Report) -> list[Orphan]:
        report.objects += len(page)
        report.bytes += sum(each.size for each in page)
        ours = [each for each in page if _object_key(each.key) is not None]
        report.foreign += len(page) - len(ours)
        old = [each for each in ours if each.age >= self.grace]
        report.young += len(ours) - len(old)
        orphans = await self._unnamed(old)
        report.orphans += len(orphans)
        report.orphan_bytes += sum(each.size for each in orphans)
        report.removable += orphans[: MOST - len(report.removable)]
        return orphans

    async def _unnamed(self, objects: Sequence[Listed]) -> list[Orphan]:
        """Return those of some objects that no file can ever name."""
        keys = {key for each in objects if (key := _object_key(each.key))}
        if not objects:
            return []
        async with self._db.connection() as conn:
            files = await inventory.named(conn, sorted(keys))
        found = ((each, _why(each.key, files)) for each in objects)
        return [Orphan(each.key, each.size, each.age, why) for each, why in found if why]

    async def _missing_of(
        self, page: Iterable[Listed], after: Place, upto: Place, report: Report
    ) -> AsyncIterator[Missing]:
        """Yield the clean files of a stretch whose object is really gone: asked for, one by one."""
        seen = [each.key for each in page]
        while True:
            async with self._db.connection() as conn:
                files = await inventory.unseen(
                    conn, self._storage.name, seen, after=after, upto=upto, limit=PAGE
                )
            for file in files:
                if await self._is_gone(file):
                    report.missing += 1
                    yield Missing(file.id, file.ticket_key, file.filename, file.clean_key or "")
            if len(files) < PAGE:
                return
            after = (files[-1].ticket_id, files[-1].id)

    async def _is_gone(self, file: Named) -> bool:
        if file.clean_key is None or await self._storage.stat(file.clean_key) is not None:
            return False
        async with self._db.connection() as conn:
            return await inventory.still_clean(conn, file)

    async def _sign(self) -> None:
        """Leave this desk's name, so that another one knows that the storage is not its alone."""
        async with self._db.connection() as conn:
            mine = f"{DESKS}{(await events.head(conn)).epoch}"
        self._mine = mine
        if await self._storage.stat(mine) is None:
            await self._storage.write(mine, _nothing(), limit=0)

    async def _others(self) -> list[str]:
        return [
            each.key
            async for page in self._storage.list(DESKS)
            for each in page
            if each.key != self._mine
        ]


def _why(key: str, files: dict[str, Named]) -> str:
    """Return why an object is nobody's; empty when it is somebody's, or might become so."""
    if key.startswith(PROBES):
        return "a probe"
    file = files.get(_object_key(key) or "")
    if file is None:
        return "no such file"
    if file.status != "CLEAN" or file.clean_key == key:
        return ""
    return "of an earlier scan" if key.startswith(CLEAN) else "left in quarantine"


def _object_key(key: str) -> str | None:
    """Return the object key of the file that an object belongs to; None for what is not ours."""
    if key.startswith(PROBES):
        return ""
    place = _place(key)
    return None if place is None else f"tickets/{place[0]}/{place[1]}"


def _place(key: str) -> Place | None:
    """Return the ticket and the file that the key of an object names."""
    area, _, rest = key.partition("/")
    parts = rest.split("/")
    if len(parts) != 3 or parts[0] != "tickets":
        return None
    name, _, epoch = parts[2].partition(".")
    if f"{area}/" == QUARANTINE and epoch or f"{area}/" == CLEAN and not epoch.isdecimal():
        return None
    try:
        place = UUID(parts[1]), UUID(name)
    except ValueError:
        return None
    return place if (str(place[0]), str(place[1])) == (parts[1], name) else None


async def _nothing() -> AsyncIterator[bytes]:
    yield b""
