"""What mails say: templates, values that are only text, and words that are not for everybody."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from itdesk.desk.disclosure import CustomerNews, InternalText, PublicText, StaffNews, said
from itdesk.desk.letters import TEMPLATES, Letters, many_lines, one_line
from itdesk.errors import ConfigError
from itdesk.model import Comment, new_id

WHEN = datetime(2026, 3, 1, tzinfo=UTC)

VALUES = {
    "desk": "The Desk", "name": "Jo", "email": "jo@example.org", "link": "https://x.org/a?b=1&c=2",
    "code": "123456", "hours": 24, "key": "TSK-1", "title": "Printer", "what": "It burns.",
    "text": "One\n\nTwo", "why": "it is so",
}  # fmt: skip


def comment(body: str, *, internal: bool) -> Comment:
    return Comment(new_id(), new_id(), None, "Jo", body, internal, WHEN, WHEN)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_names_only_what_it_is_given(template: str) -> None:
    letter = Letters().write(template, {n: VALUES[n] for n in TEMPLATES[template]})
    assert letter.subject and letter.text and letter.html
    assert "$" not in letter.subject + letter.text + letter.html


@pytest.mark.parametrize("template", ["verification", "password_reset"])
def test_links_and_codes_are_in_the_text_and_never_in_the_subject(template: str) -> None:
    """T15: subjects are kept and listed."""
    letter = Letters().write(template, VALUES)
    assert str(VALUES["link"]) in letter.text
    assert '<a href="https://x.org/a?b=1&amp;c=2">' in (letter.html or "")
    assert not any(str(VALUES[name]) in letter.subject for name in ("link", "code"))


def test_a_value_is_text_and_nothing_else() -> None:
    """S-37: markup, line ends, dollars and control characters in a name."""
    hostile = "<script>$code\r\nBcc: x\0\u202e</script>" + "x" * 2000
    letter = Letters().write("welcome", {**VALUES, "name": hostile})
    assert "<script>" not in (letter.html or "") and "&lt;script&gt;$code Bcc: x" in (
        letter.html or ""
    )
    assert "\0" not in letter.text and "\u202e" not in letter.text and "\r" not in letter.text
    assert len(letter.text) < 1500
    assert one_line("a\r\nb\0c \u2028 d") == "a b c d"
    assert many_lines("a\r\nb\rc\0\x1b") == "a\nb\nc"
    assert many_lines("\ud800") == "\ufffd"


def test_an_operators_template_takes_the_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "welcome.txt").write_text("Subject: Hi $name\r\n\r\nCost: 5 $$, see $link\n")
    (tmp_path / "welcome.html").write_text("<b>$name</b> $link")
    letters = Letters(tmp_path)
    letter = letters.write("welcome", {**VALUES, "name": "<i>"})
    assert letter.subject == "Hi <i>" and letter.text == f"Cost: 5 $, see {VALUES['link']}\n"
    assert letter.html == "<b>&lt;i&gt;</b> https://x.org/a?b=1&amp;c=2"
    assert "Reset" in letters.write("password_reset", VALUES).subject


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("welcome.txt", "Hello", "must be a line `Subject: ...`"),
        ("welcome.txt", "Subject: \n\nHello", "must be a line `Subject: ...`"),
        ("welcome.txt", "Subject: a\n\n", "must be a line `Subject: ...`"),
        ("welcome.txt", "Subject: a\n\nHello $nmae", "names nmae; there are code, desk"),
        ("digest.txt", "Subject: $link\n\nHello", "digest.txt names link"),
        ("welcome.txt", "Subject: a\n\n5 $ only", "write $$ for one"),
        ("welcome.txt", b"Subject: a\n\n\xff", "is not UTF-8"),
        ("welcome.html", "<b>$name</b>", "needs a welcome.txt beside it"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_at_the_start(
    tmp_path: Path, name: str, content: str | bytes, problem: str
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ConfigError) as told:
        Letters(tmp_path)
    assert problem in told.value.message and "mail.templates_dir" in told.value.message


def test_internal_words_cannot_be_put_into_a_customers_mail() -> None:
    """Neither by the type checker's leave (mypy refuses the line, and refuses this file when it
    does not: an ignore that is not needed is an error) nor at run time."""
    secret = said(comment("a nuisance", internal=True))
    assert isinstance(secret, InternalText)
    with pytest.raises(TypeError):
        CustomerNews("x", InternalText("a nuisance"))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        CustomerNews("x", "a nuisance")  # type: ignore[arg-type]
    assert "nuisance" not in f"{secret} {secret!r} {[secret]} {secret!s:>20}"
    assert StaffNews("x", secret).words == "a nuisance"
    public = said(comment("hello", internal=False))
    assert isinstance(public, PublicText)
    assert CustomerNews("x", public).words == "hello"
