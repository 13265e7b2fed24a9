"""What somebody wants of the chat, as far as word lists can tell."""

import re
from collections.abc import Sequence

from itdesk.desk.plaintext import cut, readable
from itdesk.desk.wordlists import LONGEST_READ, Language, Wordlists, tokens
from itdesk.frozen import frozen

# So far before a wish something that takes it back is looked for.
_NEAR = 3
_LONGEST_TITLE = 160
# Whoever writes more than so many words has something to say.
_SMALL = 12
_WORD = re.compile(r"[^\W_]+")
_AROUND = " \t\n.,:;!?-–—_*#>\"'()[]"  # noqa: RUF001 - people type such dashes


@frozen
class Heard:
    """What the last message of a person says; `about` is what a wish for a ticket is about."""

    language: Language
    text: str
    wish: bool
    about: str
    risky: bool
    fix: str | None
    is_problem: bool


def hear(words: Wordlists, said: Sequence[str], locale: str | None) -> Heard:
    """Return what the last of somebody's messages says, with the others to go by."""
    text = readable(said[-1])[:LONGEST_READ] if said else ""
    there = tokens(text)
    language = words.language(tokens(" ".join(said)[-LONGEST_READ:]), locale)
    wished, about = _wish(words, text, there)
    if not about:
        about = next((line for one in reversed(said[:-1]) if (line := first_line(one))), "")
    risky = any(one.chat.risks.found(there) for one in words.languages.values())
    if not risky and _is_small_talk(words, there):
        return Heard(language, text, wished, about, risky, None, is_problem=False)
    fix = None if risky else _fix(words, there, language)
    verdict = words.classify(text)
    return Heard(language, text, wished, about, risky, fix, risky or verdict.name is not None)


def _is_small_talk(words: Wordlists, there: Sequence[str]) -> bool:
    """Return whether somebody is only pleased, whatever it is about."""
    chats = [one.chat for one in words.languages.values()]
    return (
        len(there) <= _SMALL
        and any(chat.praise.found(there) for chat in chats)
        and not any(chat.wants.found(there) for chat in chats)
    )


def _fix(words: Wordlists, there: Sequence[str], language: Language) -> str | None:
    """Return the quick fix of the first topic that comes up, in the language of the answer."""
    for number, fix in enumerate(language.chat.fixes):
        topics = [one.chat.fixes for one in words.languages.values()]
        same = [other for fixes in topics for other in fixes if other.topic == fix.topic]
        if any(other.phrases.found(there) for other in same):
            return language.chat.fixes[number].reply
    return None


def _wish(words: Wordlists, text: str, there: Sequence[str]) -> tuple[bool, str]:
    """Return whether a ticket is asked for in so many words, and what it is to be about."""
    for language in words.languages.values():
        place = language.chat.wishes.first(there)
        if place is None:
            continue
        start, end = place
        if set(there[max(0, start - _NEAR) : start]) & set(language.chat.negation):
            continue
        spans = [match.span() for match in _WORD.finditer(text)]
        filler = set(language.chat.filler)
        after = _without(first_line(text[spans[end - 1][1] :]), filler)
        before = _without(_last_line(text[: spans[start][0]]), filler)
        return True, after if len(after) >= 3 else before
    return False, ""


def first_line(text: str) -> str:
    """Return the first line of a text that says something, as a title could be."""
    lines = (line.strip(_AROUND) for line in readable(text).split("\n"))
    return cut(" ".join(next(filter(None, lines), "").split()), _LONGEST_TITLE)


def _last_line(text: str) -> str:
    lines = [line.strip(_AROUND) for line in text.split("\n")]
    return cut(" ".join(next(filter(None, reversed(lines)), "").split()), _LONGEST_TITLE)


def _without(text: str, filler: set[str]) -> str:
    """Return a text without the words at either end that belong to the wish."""
    found = list(_WORD.finditer(text))
    while found and found[0][0].casefold() in filler:
        found.pop(0)
    while found and found[-1][0].casefold() in filler:
        found.pop()
    if not found:
        return ""
    return text[found[0].start() : found[-1].end()].strip(_AROUND)
