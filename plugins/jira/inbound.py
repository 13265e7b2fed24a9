"""From a webhook to the mirror: what it leaves open is asked of Jira, before anything is written.

A webhook that says enough by itself is written whether Jira can be reached or not.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from itdesk.errors import BadRequest
from itdesk.remote import Mirrored, RemoteIssue
from itdesk.runtime.log import get_logger

from . import mapping, webhook
from .client import Client
from .failures import JiraFailure, Missing

if TYPE_CHECKING:
    from itdesk.desk.mirror import Mirror

LONGEST_IDENTIFIER = 200

log = get_logger("jira")


class Inbound:
    """Receives webhooks, straight from Jira or through a workflow."""

    def __init__(self, client: Client, mirror: "Mirror") -> None:
        self._client = client
        self._mirror = mirror

    async def receive(
        self, body: Any, headers: Mapping[str, str], *, digest: str, request_id: str | None
    ) -> Mirrored:
        """Write what a webhook says into its ticket."""
        if headers.get("X-Sync-Origin", "").strip().lower() in webhook.OWN_ORIGINS:
            return await self._passed_over(webhook.key_of(body))
        told = webhook.read(body)
        if told is None:
            return await self._passed_over(webhook.key_of(body))
        identifier = headers.get("X-Atlassian-Webhook-Identifier", "").strip()
        deliveries = [identifier[:LONGEST_IDENTIFIER]] if identifier.isprintable() else []
        if told.timed:
            deliveries.append(f"sha256:{digest}")
        return await self._mirror.tell(
            await self._certain(await self.completed(told)),
            deliveries=[name for name in deliveries if name],
            actor=told.actor,
            request_id=request_id,
        )

    async def completed(self, told: webhook.Told) -> RemoteIssue:
        """Return the issue with what the webhook did not say, as far as Jira must be asked."""
        issue = told.issue
        if issue.gone:
            return issue
        if told.bare:
            return await self._asked(told)
        known = await self._mirror.find(issue.source, issue.key, issue.id)
        if told.partial and known is None:
            return await self._introduced(issue)
        # What was said before a ticket was here came by no webhook.
        if told.asks_comments and (known is None or issue.id is None):
            return await self._with_comments(issue)
        return issue

    async def _asked(self, told: webhook.Told) -> RemoteIssue:
        """Return the whole issue, of which a webhook said only that there is news of it."""
        issue = told.issue
        if not self._client.settings.connected:
            raise BadRequest(
                "This body has no fields with their `updated` time, and Jira cannot be asked:"
                " set JIRA_BASE_URL, JIRA_EMAIL and JIRA_API_TOKEN, or send both.",
                code="E_JIRA_PAYLOAD",
            )
        found = await self._fetched(issue.key)
        if told.asks_comments and not issue.comments and not found.all_comments:
            return await self._with_comments(found)
        # Comments that came along are kept beside those that were found.
        own = {comment.id for comment in found.comments}
        more = tuple(comment for comment in issue.comments if comment.id not in own)
        return replace(found, comments=(*found.comments, *more))

    async def _introduced(self, issue: RemoteIssue) -> RemoteIssue:
        """Return an issue that was first heard of by a comment; the comment is kept."""
        if not self._client.settings.connected:
            return issue
        try:
            found = await self._fetched(issue.key or issue.id or "")
        except JiraFailure as exc:
            if not issue.key:
                raise
            log.warning("a comment came before its issue", issue=issue.key, problem=exc.message)
            return issue
        kept = tuple(c for c in found.comments if c.id not in {o.id for o in issue.comments})
        return replace(found, comments=(*kept, *issue.comments), gone_comments=issue.gone_comments)

    async def _fetched(self, name: str) -> RemoteIssue:
        try:
            found = await self._client.issue(name, fields=mapping.FIELDS)
        except Missing as exc:
            raise BadRequest(
                f"Jira has no issue {name}, or hides it from its account.", code="E_JIRA_PAYLOAD"
            ) from exc
        if not mapping.is_key(found.get("key")):
            raise BadRequest(
                f"The key of {name} cannot be borne by a ticket.", code="E_JIRA_PAYLOAD"
            )
        return mapping.issue_of(found)

    async def _with_comments(self, issue: RemoteIssue) -> RemoteIssue:
        """Return an issue with all its comments, if Jira tells them now; reconciling will later."""
        if not self._client.settings.connected or issue.all_comments:
            return issue
        try:
            said = mapping.comments_of(await self._client.comments(issue.key))
        except JiraFailure as exc:
            log.info("comments are left for later", issue=issue.key, problem=exc.message)
            return issue
        known = {comment.id for comment in said}
        more = tuple(comment for comment in issue.comments if comment.id not in known)
        return replace(issue, comments=(*said, *more), all_comments=not more)

    async def _certain(self, issue: RemoteIssue) -> RemoteIssue:
        """Return an issue without comments that Data Center may hide from some who see it here.

        Its webhooks do not tell who may read a comment: it is asked, and what it does not tell
        now is left for reconciling.
        """
        client = self._client
        if not client.settings.connected or not mapping.is_unsure(issue):
            return issue
        known = {comment.id: comment for comment in issue.comments if comment.sure}
        try:
            if await client.dialect() != "datacenter":
                return issue
            asked = mapping.comments_of(await client.comments(issue.key or issue.id or ""))
            known = {comment.id: comment for comment in asked} | known
        except JiraFailure as exc:
            log.info("comments are left for later", issue=issue.key, problem=exc.message)
        kept = [known[comment.id] for comment in issue.comments if comment.id in known]
        whole = issue.all_comments and len(kept) == len(issue.comments)
        return replace(issue, comments=tuple(kept), all_comments=whole)

    async def _passed_over(self, key: str) -> Mirrored:
        ticket_id = await self._mirror.find(mapping.SOURCE, key) if key else None
        return Mirrored(key, ticket_id, status="ignored")
