"""Text that can do nothing but be read (S-36)."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itdesk.desk.plaintext import LONGEST, cut, plain, plain_line

SAME = [
    "Turn it off and on again.",
    "5 < 6 and 7 > 3; a <= b",
    "Zwei Zeilen\n\nund eine Leerzeile",
    "Grüße 😀 日本語",
    "price: 5 EUR, ratio 3:4, at 12:30",
    "[brackets] (and parentheses)",
    "C:\\Windows and /etc/hosts",
]

CHANGED = {
    "<b>bold</b>": "bold",
    "<script>alert(1)</script>": "alert(1)",
    "<scr<script>ipt>alert(1)</script>": "scr ipt>alert(1)",
    "<img src=x onerror=alert(1)": "img src=x onerror=alert(1)",
    "[click](https://evil.example/?q=1)": "click",
    "![pixel](https://evil.example/p.png)": "pixel",
    "[click][1]": "[click [1]",
    "see https://evil.example/a": "see evil.example/a",
    "see HTTPS://evil.example": "see evil.example",
    "hhttps://ttps://evil.example": "evil.example",
    "www.evil.example": "evil.example",
    "javascript:alert(1)": "alert(1)",
    "jav\u200bascript:alert(1)": "alert(1)",
    "java\nscript:alert(1)": "java\nscript:alert(1)",
    "mailto:a@example.org": "a@example.org",
    "a\x00b\x1bc\x9bd": "abcd",
    "a\u202eb\u2066c\ufeffd\U000e0041e": "abcde",
    "a\r\nb\rc\u2028d": "a\nb\nc\nd",
    "  a   b \t c  ": "a b c",
    "a\n\n\n\nb": "a\n\nb",
}


@pytest.mark.parametrize("text", SAME)
def test_what_people_write_stays(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("text", CHANGED)
def test_markup_links_and_unseen_characters_go(text: str) -> None:
    assert plain(text) == CHANGED[text]


_PIECES = st.sampled_from(
    ["<", ">", "script", "a", "/", "!", "[", "](", ")", "(", "http", "https://", ":", "//", "www.",
     "javascript:", "java", " ", "\n", "\u200b", "\u202e", "\x00", "data:", "x"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=30).map("".join))
def test_nothing_new_comes_together(text: str) -> None:
    """S-36: no tag, address or link is left, however it was nested."""
    left = plain(text)
    assert len(left) <= len(text)
    assert not re.search(r"<[A-Za-z/!?]", left)
    assert not re.search(r"\b(?:javascript|data):|\w://|\bwww\.\w|\]\(", left)
    assert not re.search("[\x00-\x08\x0b-\x1f\u200b-\u200f\u202a-\u202e]", left)


def test_a_megabyte_of_anything_is_read_in_no_time() -> None:
    """S-36: 1 MB; nothing is looked at again and again."""
    for piece in ("<", "[", "[a](", "<a", "h", "https:", "\u200b", "www.", " ", "\n", "]("):
        started = time.monotonic()
        assert len(plain(piece * (1 << 20))) <= LONGEST
        assert time.monotonic() - started < 2, piece


def test_a_line_is_one_and_a_cut_says_so() -> None:
    assert plain_line(" a\n<b>b</b>\tc ") == "a b c"
    assert cut("short", 10) == "short"
    assert cut("one two three four", 14) == "one two three…"
    assert len(cut("x" * 100, 10)) == 10
    for longest in (0, -1, -50):
        assert cut("one two three four", longest) == ""
