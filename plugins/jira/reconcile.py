"""Walks through what changed in Jira, so that no lost webhook stays lost.

The mark of how far the mirror has come never passes an issue that failed. It is laid back a
little at each walk, because Jira finds by the minute and its index is behind its issues.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from itdesk.errors import DeskError, Invalid
from itdesk.remote import Mirrored, Reconciled, RemoteIssue
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger

from . import mapping
from .client import Client
from .failures import Unauthorized, Unavailable
from .patience import patient

if TYPE_CHECKING:
    from itdesk.desk.mirror import Mirror, Walk

OVERLAP: Final = timedelta(minutes=2)
FIRST_LOOK: Final = timedelta(days=1)
# Longer than this nobody waits in the middle of a walk: the next one goes on from here.
LONGEST_PAUSE: Final = 60.0
MOST_ERRORS: Final = 1000
# The name under which the mark of a walk through all projects is kept.
ALL: Final = "*"

log = get_logger("jira")


@dataclass(slots=True)
class _Tally:
    """What a walk came to so far, and how far the mark may be moved."""

    fetched: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    errors: list[str] = field(default_factory=list)
    good_until: datetime | None = None
    failed_at: datetime | None = None

    def add(self, became: Mirrored, at: datetime | None) -> None:
        """Count an issue that was written."""
        self.created += became.created
        self.updated += became.updated and not became.created
        self.unchanged += not (became.created or became.updated)
        if self.failed_at is None and at is not None:
            self.good_until = max(at, self.good_until or at)

    def fail(self, text: str, at: datetime | None, since: datetime) -> None:
        """Count an issue that could not be written; one of an unknown time holds everything up."""
        self.errors.append(text)
        failed = at or since
        self.failed_at = min(failed, self.failed_at or failed)

    def mark(self, known: datetime | None, since: datetime) -> datetime | None:
        """Return where the next walk shall begin, or None to leave the mark where it is."""
        if known is not None and since > known:
            # What changed between the mark and the asked time was not looked at.
            reached = known
        else:
            reached = max(self.good_until or since, known or since)
        return min(reached, self.failed_at) if self.failed_at is not None else reached


class Reconciler:
    """Compares the mirror with Jira."""

    def __init__(self, client: Client, mirror: "Mirror", clock: Clock) -> None:
        self._client = client
        self._mirror = mirror
        self._clock = clock
        self._zone: ZoneInfo | None = None
        self.drift: Counter[str] = Counter()

    async def reconcile(self, *, since: datetime | None, project_key: str | None) -> Reconciled:
        """Walk through all that changed since a time, else since the mark, else since yesterday."""
        project = project_key or self._client.settings.project_key or None
        async with self._mirror.walking() as walk:
            known, now = await walk.progress(project or ALL)
            if since is not None and since > now + timedelta(days=1):
                raise Invalid.field("since", "is in the future")
            start = since or known or now - FIRST_LOOK
            tally = _Tally()
            self.drift = Counter()
            problem: str | None = "stopped before its end"
            try:
                await self._walk(walk, project, start, tally)
                problem = None
            except DeskError as exc:
                problem = exc.message
                raise
            finally:
                mark = tally.mark(known, start) if problem is None or tally.fetched else None
                if problem is not None and mark is not None and tally.good_until is None:
                    mark = None
                failed = problem or (tally.errors[0] if tally.errors else None)
                await walk.note(project or ALL, mark, failed)
        return Reconciled(
            status="ok" if not tally.errors else "partial",
            project_key=project,
            since=start,
            fetched=tally.fetched,
            created=tally.created,
            updated=tally.updated,
            unchanged=tally.unchanged,
            errors=tally.errors,
        )

    async def _walk(
        self, walk: "Walk", project: str | None, start: datetime, tally: _Tally
    ) -> None:
        keep_at = self._clock.monotonic()
        async for page in self._pages(project, start - OVERLAP):
            for raw in page:
                if self._clock.monotonic() >= keep_at:
                    await walk.keep()
                    keep_at = self._clock.monotonic() + walk.seconds / 5
                tally.fetched += 1
                await self._mirror_one(raw, tally, start)
            if len(tally.errors) > MOST_ERRORS:
                raise Unavailable(
                    f"More than {MOST_ERRORS} issues cannot be mirrored; see the first:"
                    f" {tally.errors[0]}"
                )

    async def _mirror_one(self, raw: Mapping[str, Any], tally: _Tally, since: datetime) -> None:
        """Write one issue; what goes wrong with it alone is counted and does not end the walk."""
        key, fields = raw.get("key"), raw.get("fields")
        at = mapping.time_of(fields.get("updated")) if isinstance(fields, Mapping) else None
        if not mapping.is_key(key):
            name = str(key)[:50] if key else "an issue"
            tally.fail(f"{name}: its key cannot be borne by a ticket here", at, since)
            return
        try:
            issue = await self._whole(mapping.issue_of(raw))
            became = await self._mirror.tell(issue)
            self.drift.update(became.drift)
            tally.add(became, issue.updated_at)
        except Unauthorized:
            tally.fetched -= 1
            raise
        except DeskError as exc:
            log.warning("issue not mirrored", issue=key, problem=exc.message)
            tally.fail(f"{key}: {exc.message}", at, since)

    async def _whole(self, issue: RemoteIssue) -> RemoteIssue:
        """Return an issue with all its comments: a search shows some of many."""
        unsure = mapping.is_unsure(issue) and (
            await self._patient(self._client.dialect) == "datacenter"
        )
        if issue.all_comments and not unsure:
            return issue
        said = await self._patient(lambda: self._client.comments(issue.key))
        return replace(issue, comments=mapping.comments_of(said), all_comments=True)

    async def _pages(
        self, project: str | None, since: datetime
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield pages of what changed since, each issue as of one time once, the oldest first.

        Where pages are numbered, an issue that changes meanwhile moves to the end and all behind
        it move up, over the edge of a page. So each further page is asked for by the time that
        the last one ended at.
        """
        size = self._client.settings.sync_page_size
        seen: set[tuple[Any, Any]] = set()
        bound, at = since, None
        by_time = await self._patient(self._client.dialect) == "datacenter"
        while True:
            jql = await self._jql(project, bound)
            where = at
            page, at = await self._patient(
                lambda jql=jql, where=where: self._client.search(
                    jql, mapping.FIELDS, size=size, at=where
                )
            )
            fresh = [raw for raw in page if _version(raw) not in seen]
            seen.update(map(_version, fresh))
            if fresh:
                yield fresh
            if at is None:
                return
            last = mapping.time_of(_version(page[-1])[1]) if page else None
            if by_time and last is not None and _minute(last) > _minute(bound):
                bound, at = last, None

    async def _jql(self, project: str | None, since: datetime) -> str:
        """Return what to search: Jira reads times in the time zone of the account that asks."""
        zone = await self._time_zone()
        bound = f'updated >= "{local_minute(since, zone):%Y-%m-%d %H:%M}"'
        where = f'project = "{project}" AND {bound}' if project else bound
        return f"{where} ORDER BY updated ASC, key ASC"

    async def _time_zone(self) -> ZoneInfo:
        if self._zone is None:
            name = (await self._patient(self._client.myself)).get("timeZone")
            try:
                self._zone = ZoneInfo(str(name))
            except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
                raise Unavailable(
                    f"The time zone {str(name)[:50]} of Jira's account is not known to this"
                    " machine: install tzdata."
                ) from exc
        return self._zone

    async def _patient(self, ask: Any) -> Any:
        """Ask Jira; when it wants a short pause, make it and ask again."""
        return await patient(self._clock, ask, longest=LONGEST_PAUSE)


def local_minute(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return the minute of a time in a zone; one that the clocks show twice is laid before both."""
    local = moment.astimezone(zone)
    if local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset():
        local = (moment - timedelta(hours=3)).astimezone(zone)
    return local.replace(second=0, microsecond=0)


def _version(raw: Mapping[str, Any]) -> tuple[Any, Any]:
    fields = raw.get("fields")
    updated = fields.get("updated") if isinstance(fields, Mapping) else None
    return str(raw.get("key")), updated if isinstance(updated, str) else None


def _minute(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(second=0, microsecond=0)
