"""Jira's words as the desk's: pure functions from what Jira says to what a ticket holds.

Whatever a field looks like, it either means something or is left out: nothing here raises for
the content of a field, and only what is there is returned.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from itdesk.model import Category, Priority, Status
from itdesk.remote import RemoteComment, RemoteIssue, RemotePerson

from .adf import text_of
from .settings import PROJECT_KEY

SOURCE: Final = "jira"
LONGEST_TITLE: Final = 255
MOST_TAGS: Final = 20
LONGEST_TAG: Final = 64
# What is read of an issue; everything else it has is nobody's business here.
FIELDS: Final = (
    "summary,description,status,priority,issuetype,project,labels,assignee,reporter,created,"
    "updated,comment"
)

_KEY = re.compile(rf"{PROJECT_KEY}-[1-9][0-9]{{0,17}}", re.ASCII)
_ORIGIN = re.compile(r"itdesk_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.ASCII)
_COMMENT_OF = re.compile(r"/issue/([0-9]{1,18})/comment/")

_STATUSES: Mapping[str, Status] = {
    "to do": Status.OPEN,
    "open": Status.OPEN,
    "new": Status.OPEN,
    "reopened": Status.OPEN,
    "triaged": Status.TRIAGED,
    "in progress": Status.IN_PROGRESS,
    "pending": Status.BLOCKED,
    "blocked": Status.BLOCKED,
    "on hold": Status.BLOCKED,
    "resolved": Status.CLOSED,
    "done": Status.CLOSED,
    "closed": Status.CLOSED,
}
_STATUS_CATEGORIES: Mapping[str, Status] = {
    "new": Status.OPEN,
    "indeterminate": Status.IN_PROGRESS,
    "done": Status.CLOSED,
}
_PRIORITIES: Mapping[str, Priority] = {
    "highest": Priority.CRITICAL,
    "critical": Priority.CRITICAL,
    "high": Priority.HIGH,
    "medium": Priority.MEDIUM,
    "low": Priority.LOW,
    "lowest": Priority.LOW,
}
_TYPES: Mapping[str, Category] = {
    "incident": Category.SERVICE_REQUEST,
    "service request": Category.SERVICE_REQUEST,
    "task": Category.APPLICATION,
    "bug": Category.APPLICATION,
    "problem": Category.PROBLEM,
}


def is_key(text: object) -> bool:
    """Return whether this is an issue's key that a ticket can bear."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def issue_of(issue: Mapping[str, Any], *, all_comments: bool = False) -> RemoteIssue:
    """Return what an issue in Jira's REST form says; its key must be one (see `is_key`)."""
    fields = issue.get("fields")
    fields = fields if isinstance(fields, Mapping) else {}
    listed = fields.get("comment")
    comments = comments_of(listed)
    whole = isinstance(listed, Mapping) and listed.get("total") == len(comments)
    project = fields.get("project")
    number = issue.get("id")
    return RemoteIssue(
        source=SOURCE,
        key=str(issue["key"]),
        id=str(number) if isinstance(number, str | int) and str(number).isdigit() else None,
        project_name=_line(project.get("name")) if isinstance(project, Mapping) else None,
        fields=fields_of(fields),
        created_at=time_of(fields.get("created")),
        updated_at=time_of(fields.get("updated")),
        comments=comments,
        all_comments=all_comments or whole,
        origin=origin_of(fields.get("labels")),
    )


def origin_of(labels: Any) -> UUID | None:
    """Return the ticket here that an issue was made from, as its label says."""
    for label in labels if isinstance(labels, list) else ():
        if isinstance(label, str) and (match := _ORIGIN.fullmatch(label)):
            return UUID(match[1])
    return None


def fields_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a ticket that these fields of an issue speak of."""
    found: dict[str, Any] = {}
    if title := _line(fields.get("summary")):
        found["title"] = title[:LONGEST_TITLE]
    if "description" in fields:
        text = text_of(fields["description"])
        if text is not None or fields["description"] is None:
            found["description"] = clean(text or "")
    if (status := status_of(fields.get("status"))) is not None:
        found["status"] = status
    if fields.get("priority") is not None:
        found["priority"] = priority_of(fields["priority"])
    if (category := category_of(fields.get("issuetype"))) is not None:
        found["category"] = category
    if isinstance(fields.get("labels"), list):
        found["tags"] = tags_of(fields["labels"])
    for name in ("assignee", "reporter"):
        if name in fields:
            person = person_of(fields[name])
            if person is not None or fields[name] is None:
                found[name] = person
    return found


def status_of(value: Any) -> Status | None:
    """Return our status: by Jira's name of it first, then by its category, or None."""
    name = _name(value)
    if name.startswith("waiting"):
        return Status.BLOCKED
    if name in _STATUSES:
        return _STATUSES[name]
    category = value.get("statusCategory") if isinstance(value, Mapping) else None
    key = category.get("key") if isinstance(category, Mapping) else category
    return _STATUS_CATEGORIES.get(key.strip().lower()) if isinstance(key, str) else None


def priority_of(value: Any) -> Priority:
    """Return our priority; one that is unknown is medium."""
    return _PRIORITIES.get(_name(value), Priority.MEDIUM)


def category_of(value: Any) -> Category | None:
    """Return the category that an issue type stands for, or None."""
    return _TYPES.get(_name(value).removeprefix("[system]").strip())


def tags_of(labels: Sequence[Any]) -> list[str]:
    """Return labels as tags: in order, no two alike, and without those that our import adds."""
    imported = "source_local_itsm" in labels
    found: dict[str, str] = {}
    for label in labels:
        tag = _line(label)[:LONGEST_TAG].strip()
        own = tag.startswith(("itdesk_", "source_local_itsm"))
        own = own or (imported and tag.startswith(("status_", "category_", "priority_")))
        if tag and not own:
            found.setdefault(tag.casefold(), tag)
    return list(found.values())[:MOST_TAGS]


def person_of(value: Any) -> RemotePerson | None:
    """Return somebody as Jira names them; a plain text is a name."""
    if isinstance(value, str):
        return RemotePerson(_line(value)[:LONGEST_TITLE]) if _line(value) else None
    if not isinstance(value, Mapping):
        return None
    account = _first(value, "accountId", "account_id", "key", "name")
    email = _first(value, "emailAddress", "email")
    name = _first(value, "displayName", "display_name", "name") or email or account
    if name is None:
        return None
    return RemotePerson(name[:LONGEST_TITLE], account, email.lower() if email else None)


def comments_of(value: Any) -> tuple[RemoteComment, ...]:
    """Return comments in any of the forms they are listed in; those without an id are left out."""
    if isinstance(value, Mapping):
        value = value.get("comments")
    if not isinstance(value, list):
        return ()
    return tuple(comment for one in value if (comment := comment_of(one)) is not None)


def comment_of(value: Any) -> RemoteComment | None:
    """Return a comment, or None when it has no id or says nothing."""
    if not isinstance(value, Mapping):
        return None
    number, body = value.get("id"), text_of(value.get("body"))
    known = isinstance(number, str | int) and not isinstance(number, bool)
    if not known or not str(number).isalnum() or len(str(number)) > 40:
        return None
    if body is None or not clean(body).strip():
        return None
    created, internal = time_of(value.get("created")), _is_internal(value)
    return RemoteComment(
        id=str(number),
        body=clean(body),
        author=person_of(value.get("author")) or RemotePerson("Jira"),
        internal=internal is True,
        sure=internal is not None,
        created_at=created,
        updated_at=time_of(value.get("updated")) or created,
    )


def issue_id_of(comment: Mapping[str, Any]) -> str | None:
    """Return the id of the issue that a comment is on, which only its address tells."""
    address = comment.get("self")
    match = _COMMENT_OF.search(address) if isinstance(address, str) else None
    return match[1] if match else None


def is_unsure(issue: RemoteIssue) -> bool:
    """Return whether it was not told of some comment who may read it."""
    return any(not comment.sure for comment in issue.comments)


def _is_internal(value: Mapping[str, Any]) -> bool | None:
    """Return whether not everybody who sees the issue sees this comment; None when it is not said.

    Data Center says it in a property only, which is not shown unless it is asked for.
    """
    if value.get("jsdPublic") is False or value.get("visibility"):
        return True
    properties = value.get("properties")
    for one in properties if isinstance(properties, list) else ():
        if isinstance(one, Mapping) and one.get("key") == "sd.public.comment":
            kept = one.get("value")
            return isinstance(kept, Mapping) and kept.get("internal") is True
    return False if value.get("jsdPublic") is True else None


def time_of(value: Any) -> datetime | None:
    """Return a time in UTC: of ISO 8601 with or without a colon in its offset, or milliseconds."""
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=value)
        if isinstance(value, str) and "T" in value:
            moment = datetime.fromisoformat(value.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    return None


def clean(text: str) -> str:
    """Return a text without what a database cannot hold."""
    if text.isprintable():
        return text
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def _line(value: Any) -> str:
    """Return a text as one line without control characters, or an empty one."""
    if not isinstance(value, str):
        return ""
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", clean(value)).split())


def _name(value: Any) -> str:
    """Return the name of something that is named by a text or by an object with a name."""
    return _line(value.get("name") if isinstance(value, Mapping) else value).lower()


def _first(value: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        if found := _line(value.get(name)):
            return found[:LONGEST_TITLE]
    return None
