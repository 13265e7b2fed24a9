"""Jira's words as the desk's: each rule of the mapping, both kinds of text, and hostile input."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itdesk.errors import BadRequest
from itdesk.model import Category, Priority, Status
from itdesk.remote import RemoteIssue, RemotePerson
from itdesk_plugins.jira import adf, mapping, webhook


@pytest.mark.parametrize(
    ("name", "category", "expected"),
    [
        ("To Do", None, Status.OPEN),
        ("OPEN", "done", Status.OPEN),
        (" new ", None, Status.OPEN),
        ("In Progress", None, Status.IN_PROGRESS),
        ("Waiting for support", "new", Status.BLOCKED),
        ("Pending", None, Status.BLOCKED),
        ("Resolved", None, Status.CLOSED),
        ("Done", None, Status.CLOSED),
        ("Closed", None, Status.CLOSED),
        ("In Prüfung", "indeterminate", Status.IN_PROGRESS),
        ("Backlog", "new", Status.OPEN),
        ("Abgebrochen", "done", Status.CLOSED),
        ("Invented", None, None),
        ("Invented", "undefined", None),
    ],
)
def test_a_status_is_known_by_its_name_first_then_by_its_category(
    name: str, category: str | None, expected: Status | None
) -> None:
    """S4 upsert."""
    value = {"name": name, "statusCategory": {"key": category}}
    assert mapping.status_of(value) == expected
    if category is None:
        assert mapping.status_of(name) == expected


def test_priorities_and_types() -> None:
    """S4 upsert: Highest/Critical, High, Medium, Low/Lowest, unknown; the five types."""
    names = ["Highest", "Critical", "High", "Medium", "Low", "Lowest", "P0", None]
    found = [mapping.priority_of({"name": name}) for name in names]
    assert found == [
        Priority.CRITICAL, Priority.CRITICAL, Priority.HIGH, Priority.MEDIUM, Priority.LOW,
        Priority.LOW, Priority.MEDIUM, Priority.MEDIUM,
    ]  # fmt: skip
    types = ["Incident", "Service Request", "Task", "Bug", "Problem", "Epic", "[System] Incident"]
    assert [mapping.category_of({"name": name}) for name in types] == [
        Category.SERVICE_REQUEST, Category.SERVICE_REQUEST, Category.APPLICATION,
        Category.APPLICATION, Category.PROBLEM, None, Category.SERVICE_REQUEST,
    ]  # fmt: skip


def test_labels_become_tags_without_those_of_our_own_import() -> None:
    """S4 importer: what C10 adds does not come back; at most 20, of 64 characters, none twice."""
    labels = ["VPN", "vpn", "x" * 90, 7, "", "status_open"]
    assert mapping.tags_of(labels) == ["VPN", "x" * 64, "status_open"]
    ours = ["source_local_itsm", "itdesk_0190", "status_open", "category_x", "priority_y", "vpn"]
    assert mapping.tags_of(ours) == ["vpn"]
    assert len(mapping.tags_of([f"label{n}" for n in range(40)])) == 20


def test_people_of_both_dialects_and_plain_names() -> None:
    """Cloud's accountId, Data Center's user key, and a workflow's plain name."""
    cloud = {"accountId": "5b10", "displayName": "Jane", "emailAddress": "Jane@Example.ORG"}
    assert mapping.person_of(cloud) == RemotePerson("Jane", "5b10", "jane@example.org")
    server = {"name": "jane", "key": "JIRAUSER7", "displayName": "Jane"}
    assert mapping.person_of(server) == RemotePerson("Jane", "JIRAUSER7", None)
    assert mapping.person_of("Jane\nSmith") == RemotePerson("Jane Smith")
    junk: list[Any] = [None, 7, {}, [], ""]
    assert [mapping.person_of(one) for one in junk] == [None] * 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-02-02T12:30:00.000-0500", datetime(2026, 2, 2, 17, 30, tzinfo=UTC)),
        ("2026-02-02T12:30:00.123+00:00", datetime(2026, 2, 2, 12, 30, 0, 123000, tzinfo=UTC)),
        ("2026-02-02T12:30:00Z", datetime(2026, 2, 2, 12, 30, tzinfo=UTC)),
        (1770035400000, datetime(2026, 2, 2, 12, 30, tzinfo=UTC)),
        ("0001-01-01T00:00:00+1400", None),
        ("9999-12-31T23:59:59-1200", None),
        (10**18, None),
        ("yesterday", None),
        (True, None),
    ],
)
def test_times(text: Any, expected: datetime | None) -> None:
    """Times look like +0000 without colon."""
    assert mapping.time_of(text) == expected


def test_documents_become_plain_text() -> None:
    """REST v3: blocks are lines, lists keep their marks, links say where they lead."""

    def node(kind: str, *content: Any, **attributes: Any) -> dict[str, Any]:
        return {"type": kind, "content": list(content), "attrs": attributes}

    def words(text: str, *marks: Any) -> dict[str, Any]:
        return {"type": "text", "text": text, "marks": list(marks)}

    link = {"type": "link", "attrs": {"href": "https://kb.example.org"}}
    document = node(
        "doc",
        node("heading", words("Title"), level=1),
        node("paragraph", words("See "), words("the page", link), node("hardBreak"),
             node("mention", text="@Jane"), words(" "), node("emoji", shortName=":)")),
        node("bulletList", node("listItem", node("paragraph", words("one"))),
             node("listItem", node("paragraph", words("two")))),
        node("orderedList", node("listItem", node("paragraph", words("first")))),
        node("codeBlock", words("rm -rf /tmp/x")),
        node("table", node("tableRow", node("tableHeader", node("paragraph", words("a"))),
                           node("tableCell", node("paragraph", words("b"))))),
        node("panel", node("paragraph", words("careful"))),
        node("mediaSingle", node("media", id="1")),
    )  # fmt: skip
    text = adf.text_of(document)
    assert text == (
        "Title\n\nSee the page (https://kb.example.org)\n@Jane :)\n\n- one\n- two\n1. first\n"
        "rm -rf /tmp/x\na | b\ncareful"
    )


def test_wiki_markup_becomes_plain_text() -> None:
    """Webhooks and version 2."""
    markup = (
        "h2. Steps\r\n# one\r\n## *two*\r\n{code:java}\nint a = b*c*d;\n{code}\n"
        "see [the page|https://kb.example.org] or [https://x.example.org], [~accountid:5b10]\n"
        "a_b_c stays, _this_ does not, {{nor}} this; 2*3*4"
    )
    assert adf.text_of(markup) == (
        "Steps\n- one\n  - two\n\nint a = b*c*d;\n\n"
        "see the page (https://kb.example.org) or https://x.example.org, @5b10\n"
        "a_b_c stays, this does not, nor this; 2*3*4"
    )


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=200)


@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_what_is_written_comes_back(text: str) -> None:
    """What is sent to Jira as either form is read as the same text again."""
    assert adf.wiki_text(adf.markup(text)) == text.strip("\n")
    lines = "\n".join(line for line in text.split("\n"))
    again = adf.text_of(adf.document(lines)) or ""
    assert again.split() == text.split()


@pytest.mark.parametrize(
    "text",
    ["*" * 1_000_000, "[" * 1_000_000, "{code:" * 150_000, "_a" * 500_000, "[a|" * 300_000,
     "{{" * 500_000, "\\" * 1_000_000, "# " * 500_000, ("*" + "a" * 499) * 2_000],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    """S-38: no input takes more than a second."""
    started = time.process_time()
    adf.text_of(text)
    assert time.process_time() - started < 1.0


def test_a_document_of_any_depth_is_read() -> None:
    """S-38: nesting deeper than any real document is left out, without an error."""
    node: dict[str, Any] = {"type": "text", "text": "deep"}
    for _ in range(900):
        node = {"type": "paragraph", "content": [node]}
    assert adf.text_of({"type": "doc", "content": [node]}) == ""


def test_a_title_is_one_line_of_bounded_length() -> None:
    """T6: 255 characters, no control characters."""
    found = mapping.fields_of({"summary": " a\n\tb\x00c " + "x" * 300})
    assert found["title"].startswith("a bc x")
    assert len(mapping.fields_of({"summary": "x" * 300})["title"]) == 255
    assert mapping.fields_of({"summary": "\n\x00"}) == {}


def test_null_means_empty_and_absent_means_nothing() -> None:
    """R66: only what cannot be empty ignores null."""
    names = ("summary", "description", "status", "priority", "labels", "assignee", "reporter")
    empty = mapping.fields_of(dict.fromkeys(names))
    assert empty == {"description": "", "assignee": None, "reporter": None}
    assert mapping.fields_of({}) == {}


# --- fuzz ----------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
WORDS = (
    "webhookEvent issue issueKey key id fields comment comments summary description status"
    " priority issuetype labels assignee reporter created updated timestamp changelog items field"
    " fromString user name displayName accountId emailAddress body self author content type text"
    " attrs marks statusCategory project visibility properties jsdPublic value internal total"
).split()
VALUES = st.sampled_from(
    [
        "jira:issue_created", "jira:issue_updated", "jira:issue_deleted", "comment_created",
        "comment_updated", "comment_deleted", "ITSM-1", "Key", "In Progress", "doc", "paragraph",
        "2026-02-02T12:30:00.000-0500", 1770035400000, "https://j/rest/api/2/issue/1/comment/2",
        "link", "10001", "",
    ]
)  # fmt: skip
LIKELY = st.recursive(
    VALUES | JUNK,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=8)
    ),
    max_leaves=40,
)
BODIES = LIKELY | st.fixed_dictionaries(
    {"webhookEvent": VALUES, "issue": st.fixed_dictionaries({"key": VALUES, "fields": LIKELY})},
    optional={"comment": LIKELY, "changelog": LIKELY, "user": LIKELY, "timestamp": LIKELY},
)


def read(body: Any) -> None:
    """Read a body as a webhook; whatever it is, it is understood or refused."""
    started = time.process_time()
    try:
        told = webhook.read(body)
    except BadRequest as exc:
        assert exc.code == "E_JIRA_PAYLOAD"
        told = None
    assert time.process_time() - started < 1.0
    webhook.key_of(body)
    if told is not None:
        _check(told.issue)


def _check(issue: RemoteIssue) -> None:
    """Whatever was understood can be written."""
    assert mapping.is_key(issue.key) or (issue.key == "" and issue.id)
    title = issue.fields.get("title")
    assert title is None or (1 <= len(title) <= 255 and "\n" not in title)
    texts = [title, issue.fields.get("description"), *(one.body for one in issue.comments)]
    for text in texts:
        assert text is None or ("\x00" not in text and text.encode() is not None)
    assert len(issue.fields.get("tags", ())) <= 20
    assert all(comment.body.strip() and comment.id for comment in issue.comments)
    for moment in (issue.updated_at, issue.created_at):
        assert moment is None or moment.tzinfo is UTC


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=120, deadline=None, suppress_health_check=QUIET)
@given(BODIES)
def test_any_body_is_understood_or_refused(body: Any) -> None:
    """S-38, S-32: the webhook parser raises nothing but E_JIRA_PAYLOAD."""
    read(body)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=QUIET)
@given(BODIES)
def test_any_body_is_understood_or_refused_at_length(body: Any) -> None:
    """S-38: minutes of it."""
    read(body)
