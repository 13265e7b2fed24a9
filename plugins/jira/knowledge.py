"""What was said in Jira about things like the one asked for: the last words of the latest issues.

They are fetched beside whoever asks, kept for a while, and ranked by the words they share with
the query. Nobody is told of an issue whose ticket they may not see, nor of internal comments
unless they are an agent.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from itdesk.hookspecs import Passage
from itdesk.model import Caller, Role
from itdesk.remote import RemoteComment
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger

from . import mapping
from .client import Client
from .failures import JiraFailure

if TYPE_CHECKING:
    from itdesk.desk.outbound import Outbound

LONGEST_TEXT: Final = 280
SHORTEST_WORD: Final = 3
WHOLE_QUERY: Final = 0.25
FAILED_SECONDS: Final = 60.0
# Longer than this nobody waits: what is fetched meanwhile is there for the next one.
PATIENCE_SECONDS: Final = 3.0
LONGEST_QUERY: Final = 10_000

_WORDS = re.compile(r"\w+")
_STOP: Final = frozenset(
    """
    about above after again all also and any are because been before being below between both but
    can cannot could did does doing down during each few for from further had has have having her
    here hers him his how into its itself just may more most must nor not now off once only other
    our ours out over own please same shall she should some such than thanks that the their theirs
    them then there these they this those through too under until very was were what when where
    which while who whom why will with would you your yours
    """.split()
)

log = get_logger("jira")


@dataclass(frozen=True, slots=True)
class Remark:
    """A comment of an issue, and the words that it is found by."""

    key: str
    title: str
    comment: RemoteComment
    words: frozenset[str]


class Knowledge:
    """The comments that were fetched last, and when they are fetched again."""

    def __init__(self, client: Client, outbound: "Outbound", clock: Clock) -> None:
        self._client = client
        self._outbound = outbound
        self._clock = clock
        self._settings = client.settings.kb
        self._remarks: Sequence[Remark] = ()
        self._fresh_until = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Leave nothing running behind."""
        try:
            yield
        finally:
            if self._fetching is not None:
                self._fetching.cancel()
                await asyncio.wait({self._fetching})

    async def find(self, caller: Caller, query: str) -> list[Passage]:
        """Return the comments that fit a query best, of those that the caller may read."""
        if not self._settings.enabled or not self._client.settings.connected:
            return []
        await self._refresh()
        ranked = rank(query, self._remarks, internal=caller.has(Role.AGENT))
        visible = await self._outbound.visible(
            caller, mapping.SOURCE, list({remark.key for _, remark in ranked})
        )
        base = self._client.settings.base_url
        return [
            Passage(
                source=mapping.SOURCE,
                title=f"{remark.key} {remark.title}".strip(),
                text=_cut(remark.comment.body),
                score=score,
                url=f"{base}/browse/{remark.key}",
            )
            for score, remark in ranked
            if remark.key in visible
        ][: self._settings.top_matches]

    async def _refresh(self) -> None:
        """Fetch anew what is too old, together with everybody else who waits for it."""
        if self._clock.monotonic() < self._fresh_until:
            return
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())
        await asyncio.wait({self._fetching}, timeout=PATIENCE_SECONDS)

    async def _fetch(self) -> None:
        try:
            self._remarks = await self._fetched()
            self._fresh_until = self._clock.monotonic() + self._settings.cache_seconds
        except JiraFailure as exc:
            self._fresh_until = self._clock.monotonic() + FAILED_SECONDS
            log.warning("comments of jira not fetched", problem=exc.message, said=exc.said)
        except Exception as exc:  # noqa: BLE001 - else every prompt would ask anew
            self._fresh_until = self._clock.monotonic() + FAILED_SECONDS
            log.error("comments of jira not fetched", exc_info=exc)

    async def _fetched(self) -> list[Remark]:
        project = self._client.settings.project_key
        # Cloud wants every search to have a bound.
        where = f'project = "{project}"' if project else 'created >= "2000-01-01"'
        found: list[Remark] = []
        issues, at = 0, None
        while issues < self._settings.max_issues:
            page, at = await self._client.search(
                f"{where} ORDER BY updated DESC",
                "summary,comment,updated",
                size=min(self._settings.max_issues - issues, 100),
                at=at,
            )
            page = page[: self._settings.max_issues - issues]
            issues += len(page)
            for raw in page:
                found += await self._remarks_of(raw)
            if at is None or not page:
                break
        return found

    async def _remarks_of(self, raw: Mapping[str, Any]) -> list[Remark]:
        """Return the last comments of an issue; of many a search shows the first only."""
        key, fields = raw.get("key"), raw.get("fields")
        if not mapping.is_key(key) or not isinstance(fields, Mapping):
            return []
        most = self._settings.max_comments_per_issue
        listed = fields.get("comment")
        shown: Any = listed.get("comments") if isinstance(listed, Mapping) else None
        shown = shown if isinstance(shown, list) else []
        total = listed.get("total") if isinstance(listed, Mapping) else None
        hides = await self._client.dialect() == "datacenter" and any(
            not one.sure for one in mapping.comments_of(shown)
        )
        if hides or (isinstance(total, int) and total > len(shown)):
            shown = await self._client.latest_comments(str(key), most)
        comments = sorted(mapping.comments_of(shown), key=_said_at)[-most:]
        title = str(mapping.fields_of(fields).get("title", ""))
        return [Remark(str(key), title, one, words_of(one.body)) for one in comments]


def rank(query: str, remarks: Sequence[Remark], *, internal: bool) -> list[tuple[float, Remark]]:
    """Return the comments that share words with a query, the best and then the newest first."""
    query = query[:LONGEST_QUERY]
    asked, whole = words_of(query), _folded(query)
    scored = []
    for remark in remarks:
        if remark.comment.internal and not internal:
            continue
        smaller = min(len(asked), len(remark.words))
        score = len(asked & remark.words) / smaller if smaller else 0.0
        if score > 0:
            if whole in _folded(remark.comment.body):
                score += WHOLE_QUERY
            scored.append((score, remark))
    scored.sort(key=lambda one: (one[0], _said_at(one[1].comment)), reverse=True)
    return scored


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text that say something."""
    words = (word.casefold() for word in _WORDS.findall(text))
    return frozenset(w for w in words if len(w) >= SHORTEST_WORD and w not in _STOP)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _said_at(comment: RemoteComment) -> datetime:
    return comment.updated_at or comment.created_at or datetime.min.replace(tzinfo=UTC)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1].rstrip() + "…"
