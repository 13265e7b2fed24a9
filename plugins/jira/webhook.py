"""What a webhook says: Jira's own form, and the simpler one that workflows send.

Pure functions. A body either says something about an issue, or is about something else (None),
or cannot be understood (BadRequest E_JIRA_PAYLOAD).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from itdesk.errors import BadRequest
from itdesk.remote import RemoteIssue

from . import mapping

# Who sends our own changes back to us, as the header X-Sync-Origin names them.
OWN_ORIGINS: Final = frozenset({"itdesk", "backend", "db-sync"})

_CHANGED: Final = ("jira:issue_created", "jira:issue_updated")
_SAID: Final = ("comment_created", "comment_updated", "comment_deleted")


@dataclass(frozen=True, slots=True)
class Told:
    """What a body says of an issue, and what it leaves for Jira to be asked.

    `bare` means that nothing but the issue's name was said; `partial`, that its fields are not
    all, so that a ticket should not be opened from them alone; `timed`, that the same words said
    again are no news.
    """

    issue: RemoteIssue
    actor: str = ""
    bare: bool = False
    partial: bool = False
    timed: bool = True
    asks_comments: bool = False


def read(body: Any) -> Told | None:
    """Return what a body says, or None when it is about nothing that is mirrored."""
    if not isinstance(body, Mapping):
        raise _unreadable("it is no JSON object")
    event = body.get("webhookEvent")
    if event is None and not isinstance(body.get("issue"), Mapping):
        return _simple(body)
    if event in _SAID:
        return _said(body, str(event))
    if event == "jira:issue_deleted":
        return _deleted(body)
    if event is None or event in _CHANGED:
        return _changed(body)
    return None


def key_of(body: Any) -> str:
    """Return the key of the issue that a body is about, or an empty one."""
    if not isinstance(body, Mapping):
        return ""
    issue = body.get("issue")
    named = issue if isinstance(issue, Mapping) else body
    for name in ("issueKey", "issue_key", "key"):
        if mapping.is_key(named.get(name)):
            return str(named[name])
    return ""


def _simple(body: Mapping[str, Any]) -> Told:
    """Read {issueKey, fields?, comments?}."""
    key = next((body[name] for name in ("issueKey", "issue_key", "key") if name in body), None)
    key = key.strip().upper() if isinstance(key, str) else key
    if not mapping.is_key(key):
        raise _unreadable('it has neither "issue" nor an "issueKey" such as ITSM-123')
    fields = body.get("fields")
    if fields is not None and not isinstance(fields, Mapping):
        raise _unreadable('"fields" is no object')
    if not fields:
        issue = RemoteIssue(source=mapping.SOURCE, key=str(key))
        return Told(issue, bare=True, timed=False, asks_comments=True)
    issue = mapping.issue_of({**body, "key": key})
    comments = body.get("comments")
    if comments is not None:
        issue = replace(issue, comments=mapping.comments_of(comments))
    return Told(
        issue,
        bare=issue.updated_at is None,
        timed=issue.updated_at is not None,
        asks_comments=comments is None and not issue.comments,
    )


def _changed(body: Mapping[str, Any]) -> Told:
    issue = _issue(body, needs_key=True)
    if issue.updated_at is None:
        issue = replace(issue, updated_at=mapping.time_of(body.get("timestamp")))
    said = mapping.comment_of(body.get("comment"))
    if said is not None and said.id not in {comment.id for comment in issue.comments}:
        issue = replace(issue, comments=(*issue.comments, said), all_comments=False)
    told = Told(
        replace(issue, former_key=_former_key(body)),
        actor=_actor(body),
        bare=not issue.fields or issue.updated_at is None,
        timed=issue.updated_at is not None,
    )
    return replace(told, asks_comments=body.get("webhookEvent") != "jira:issue_created")


def _said(body: Mapping[str, Any], event: str) -> Told:
    comment = body.get("comment")
    if not isinstance(comment, Mapping) or not isinstance(comment.get("id"), str | int):
        raise _unreadable('it is about a comment and has no "comment" with an id')
    named = isinstance(body.get("issue"), Mapping)
    if named:
        issue = _issue(body, needs_key=True)
    else:
        issue = RemoteIssue(source=mapping.SOURCE, key="", id=mapping.issue_id_of(comment))
        if issue.id is None:
            raise _unreadable("it does not say which issue the comment is on")
    # Its fields are some of the issue's, as of nobody knows when.
    issue = replace(issue, updated_at=None, comments=(), all_comments=False)
    if event == "comment_deleted":
        issue = replace(issue, gone_comments=(str(comment["id"])[:40],))
    elif (said := mapping.comment_of(comment)) is not None:
        issue = replace(issue, comments=(said,))
    return Told(issue, actor=_actor(body), partial=True, timed="timestamp" in body)


def _deleted(body: Mapping[str, Any]) -> Told:
    issue = _issue(body, needs_key=True)
    at = mapping.time_of(body.get("timestamp")) or issue.updated_at
    gone = RemoteIssue(source=mapping.SOURCE, key=issue.key, id=issue.id, updated_at=at, gone=True)
    return Told(gone, actor=_actor(body))


def _issue(body: Mapping[str, Any], *, needs_key: bool) -> RemoteIssue:
    issue = body.get("issue")
    if not isinstance(issue, Mapping):
        raise _unreadable('it has no "issue"')
    if needs_key and not mapping.is_key(issue.get("key")):
        raise _unreadable('"issue.key" is no key of an issue such as ITSM-123')
    return mapping.issue_of(issue)


def _former_key(body: Mapping[str, Any]) -> str | None:
    """Return the key that an issue had before it was moved."""
    changelog = body.get("changelog")
    items = changelog.get("items") if isinstance(changelog, Mapping) else None
    for item in items if isinstance(items, list) else ():
        if isinstance(item, Mapping) and item.get("field") == "Key":
            former = item.get("fromString")
            return former if mapping.is_key(former) else None
    return None


def _actor(body: Mapping[str, Any]) -> str:
    comment = body.get("comment")
    said = comment.get("updateAuthor") if isinstance(comment, Mapping) else None
    person = mapping.person_of(body.get("user")) or mapping.person_of(said)
    return person.name if person is not None else ""


def _unreadable(why: str) -> BadRequest:
    return BadRequest(f"This is no webhook of Jira's: {why}.", code="E_JIRA_PAYLOAD")
