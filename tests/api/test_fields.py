"""The shared field types: what is accepted is exactly what the JSON schema says."""

import re
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from itdesk.api import fields
from itdesk.model import Category, Priority, Role, Status

TEXTS = ("Line", "Name", "Title", "Text", "Prose", "Search", "Email", "Key", "WebAddress", "Tag")
WORDS = ("RoleIn", "StatusIn", "PriorityIn", "CategoryIn")


def adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(getattr(fields, name))


def accepts(kind: TypeAdapter[Any], value: object) -> bool:
    try:
        kind.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def allows(schema: dict[str, Any], text: str) -> bool:
    return (
        schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", 1 << 30)
        and re.search(schema["pattern"], text) is not None
    )


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_accepted_exactly_when_its_schema_allows_it(name: str) -> None:
    kind = adapter(name)
    schema = kind.json_schema()
    assert schema["type"] == "string"

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.text() | st.from_regex(schema["pattern"]) | st.text("a@.\n\0 \u200b", max_size=12))
    def agree(text: str) -> None:
        assert accepts(kind, text) == allows(schema, text)

    agree()


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [None, 5, True, b"abc", ["abc"], {"a": 1}])
def test_what_is_no_text_is_refused(name: str, value: object) -> None:
    assert not accepts(adapter(name), value)


@pytest.mark.parametrize(
    "address",
    [
        "a@b", "a@b..co", ".a@b.co", "a.@b.co", "a..b@c.de", "a b@c.de", "a@-b.co", "a@b-.co",
        "a@1.2.3.4", "ü@b.co", "a@ü.co", "a@b.co\r\nBcc: x@y.zz", "a@b.co,c@d.ef", "<a@b.co>",
        '"a"@b.co', "a@b.co\0", "a@" + "b" * 64 + ".co", "a" * 250 + "@b.co", "@b.co", "a@", "a",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    assert not accepts(adapter("Email"), address)


@pytest.mark.parametrize(
    "address",
    ["a@b.c", "a.b+tag@sub.example.org", "o'hara@xn--mnchen-3ya.de", "ADMIN@EXAMPLE.ORG"],
)
def test_addresses_are_accepted_and_trimmed(address: str) -> None:
    assert adapter("Email").validate_python(f"  {address} ") == address


def test_one_line_is_trimmed_and_shows_something() -> None:
    line = adapter("Name")
    assert line.validate_python("\u3000 Ann  O'Hara \u200b") == "Ann  O'Hara"
    for blank in ("", " ", "\u00a0", "\u200b\ufeff", "\t", "a\nb", "a\u2028b", "a\x1b[31m", "\x85"):
        assert not accepts(line, blank)
    title = adapter("Title")
    assert title.validate_python("  abc ") == "abc"
    for short in ("ab", " a  ", "   ", " ab"):
        assert not accepts(title, short)


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "http://", "https://a b", 'https://a"b', "ftp://x.org"]
)
def test_only_web_addresses_are_shown(address: str) -> None:
    assert not accepts(adapter("WebAddress"), address)


def test_words_are_read_in_any_case_and_by_their_other_names() -> None:
    for name, given_word, meant in (
        ("RoleIn", "REPORTER", Role.USER),
        ("RoleIn", "Viewer", Role.USER),
        ("RoleIn", "client", Role.USER),
        ("RoleIn", "MAINTAINER", Role.AGENT),
        ("RoleIn", "support", Role.AGENT),
        ("RoleIn", "ADMIN", Role.ADMIN),
        ("StatusIn", "DONE", Status.CLOSED),
        ("StatusIn", "resolved", Status.CLOSED),
        ("StatusIn", "pending", Status.BLOCKED),
        ("StatusIn", "In_Progress", Status.IN_PROGRESS),
        ("PriorityIn", "MED", Priority.MEDIUM),
        ("CategoryIn", "Service_Request", Category.SERVICE_REQUEST),
    ):
        assert adapter(name).validate_python(given_word) is meant


@pytest.mark.parametrize("name", WORDS)
def test_every_word_of_the_schema_is_read_and_no_other(name: str) -> None:
    kind = adapter(name)
    known = kind.json_schema()["enum"]
    assert all(accepts(kind, word) for word in known)
    for other in ("", " ", "root", known[0] + " ", None, 0, True, [known[0]], {"a": 1}):
        assert not accepts(kind, other)


def test_tags_keep_their_order_and_differ_by_more_than_case() -> None:
    tags = adapter("Tags")
    assert tags.validate_python(["b", " A ", "a", "B", "ß", "SS"]) == ["b", "A", "ß"]
    assert tags.validate_python([]) == []
    assert accepts(tags, [str(n) for n in range(20)])
    for wrong in (
        [""],
        [" "],
        ["x" * 65],
        [1],
        "a",
        [str(n) for n in range(21)],
        [["a"]],
        {"a": 1},
    ):
        assert not accepts(tags, wrong)
    schema = tags.json_schema()
    assert (schema["maxItems"], schema["items"]["maxLength"]) == (20, 64)


@pytest.mark.parametrize("value", [0, 1, "true", "yes", None, "false"])
def test_a_flag_is_true_or_false(value: object) -> None:
    assert not accepts(adapter("Flag"), value)


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_takes_long_to_refuse(name: str) -> None:
    kind = adapter(name)
    for bait in (" ", "a", "a ", "a.", "ab-", "@", "\u200b", "https://", "A0"):
        text = (bait * 65_536)[: kind.json_schema().get("maxLength", 65_536) - 1] + "\0"
        begun = time.perf_counter()
        assert not accepts(kind, text)
        assert time.perf_counter() - begun < 0.5
