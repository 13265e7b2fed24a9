"""Word lists: what the rules that stand in for a model go by, as files that operators may replace.

`classes.toml` says how tickets are classified and in which order; each `<language>.toml` has the
words, the advice and the sentences of one language. A text is looked through for whole words of
all languages, and answered in its own.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from itdesk.desk.plaintext import plain
from itdesk.errors import ConfigError
from itdesk.frozen import frozen
from itdesk.model import Category, Priority
from itdesk.runtime import nesting

LONGEST_READ: Final = 20_000
_LANGUAGE = re.compile(r"[a-z]{2,3}\.toml")
_TOKEN = re.compile(r"[^\W_]+")


def tokens(text: str) -> list[str]:
    """Return the words of a text, in small letters; what is between them does not count."""
    return [token.casefold() for token in _TOKEN.findall(text[:LONGEST_READ])]


class Phrases:
    """Words and phrases to be found in a text."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._known = frozenset(tuple(tokens(phrase)) for phrase in phrases)
        self._begin = frozenset(phrase[0] for phrase in self._known)
        self._longest = max(map(len, self._known), default=0)

    def first(self, words: Sequence[str]) -> tuple[int, int] | None:
        """Return where the first of them begins and ends, the longest there, or None."""
        for start, word in enumerate(words):
            if word not in self._begin:
                continue
            for size in range(min(self._longest, len(words) - start), 0, -1):
                if tuple(words[start : start + size]) in self._known:
                    return start, start + size
        return None

    def found(self, words: Sequence[str]) -> bool:
        """Return whether any of them is there."""
        return self.first(words) is not None

    def count(self, words: Sequence[str]) -> int:
        """Return how many of the words are one of them."""
        return sum((word,) in self._known for word in words)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _words(phrases: tuple[str, ...]) -> tuple[str, ...]:
    for phrase in phrases:
        if not tokens(phrase):
            raise ValueError(f"{phrase!r} has no word in it")
    return phrases


Words = Annotated[tuple[str, ...], AfterValidator(_words)]
Sentence = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(plain)]


class ClassWords(_Section):
    """The words of one class in one language, and what to do about it."""

    words: Words
    advice: Sentence

    @cached_property
    def phrases(self) -> Phrases:
        """Return the words to be found."""
        return Phrases(self.words)


class Fix(_Section):
    """What people can do themselves about something frequent."""

    topic: Literal["password", "browser", "verification", "access"]
    words: Words
    reply: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(plain)]

    @cached_property
    def phrases(self) -> Phrases:
        """Return the words to be found."""
        return Phrases(self.words)


_NAMED: Final[Mapping[str, frozenset[str]]] = {
    "drafted": frozenset({"title"}),
    "offered": frozenset({"title"}),
    "shown": frozenset({"key", "status", "title"}),
}


class Said(_Section):
    """The sentences of the chat; `$name` stands for a value."""

    drafted: Sentence
    shown: Sentence
    offered: Sentence
    which: Sentence
    smalltalk: Sentence

    def say(self, sentence: str, **values: str) -> str:
        """Return a sentence with its values."""
        return Template(getattr(self, sentence)).substitute(values)

    def model_post_init(self, context: Any, /) -> None:
        """Refuse a sentence that names what there is not."""
        for name in type(self).model_fields:
            template = Template(getattr(self, name))
            if not template.is_valid() or set(template.get_identifiers()) - _NAMED.get(name, set()):
                raise ValueError(f"{name} has a $ that names nothing; write $$ for one")


class ChatWords(_Section):
    """What the chat listens for and says in one language."""

    create: Words
    negation: Words = Field(alias="not")
    filler: Words
    risky: Words
    pleased: Words = ()
    wanting: Words = ()
    say: Said
    fixes: tuple[Fix, ...]

    @cached_property
    def wishes(self) -> Phrases:
        """Return what asks for a ticket."""
        return Phrases(self.create)

    @cached_property
    def risks(self) -> Phrases:
        """Return what forbids a quick fix."""
        return Phrases(self.risky)

    @cached_property
    def praise(self) -> Phrases:
        """Return what somebody says who wants nothing."""
        return Phrases(self.pleased)

    @cached_property
    def wants(self) -> Phrases:
        """Return what somebody says who wants something all the same."""
        return Phrases(self.wanting)


class Language(_Section):
    """One language."""

    common: Words
    recommendations: Annotated[tuple[Sentence, ...], Field(min_length=3, max_length=3)]
    classes: Mapping[str, ClassWords]
    chat: ChatWords

    @cached_property
    def usual(self) -> Phrases:
        """Return the words that tell this language."""
        return Phrases(self.common)


class Class(_Section):
    """How tickets of one kind are classified."""

    name: str
    priority: Priority
    category: Category


class _Otherwise(_Section):
    priority: Priority
    category: Category


class _Classes(_Section):
    classes: Annotated[tuple[Class, ...], Field(min_length=1)]
    otherwise: _Otherwise


@frozen
class Verdict:
    """How the rules classify a text; `name` is None when none of their words occur."""

    name: str | None
    priority: Priority
    category: Category
    recommendations: tuple[str, ...]


class Wordlists:
    """All languages, read and checked; ConfigError names every file that cannot be used."""

    def __init__(self, directory: Path | None = None) -> None:
        problems: list[str] = []
        self.languages: dict[str, Language] = {}
        place = directory if directory is not None else _shipped()
        for name in _names(place, problems):
            if language := _read(place / name, Language, problems):
                self.languages[name.removesuffix(".toml")] = language
        own = directory is not None and (directory / "classes.toml").is_file()
        order = _read((place if own else _shipped()) / "classes.toml", _Classes, problems)
        for name, language in self.languages.items():
            wanted = {one.name for one in order.classes} if order else set(language.classes)
            if wrong := wanted ^ set(language.classes):
                problems.append(
                    f"{name}.toml: classes {', '.join(sorted(wrong))}: see classes.toml"
                )
        if not self.languages and not problems:
            problems.append("holds no word list such as en.toml")
        if problems or order is None:
            raise ConfigError("\n".join(f"ai.words_dir: {problem}" for problem in problems))
        self._classes, self._otherwise = order.classes, order.otherwise

    def classify(self, text: str, locale: str | None = None) -> Verdict:
        """Return what the first class says of which a word of any language occurs."""
        words = tokens(text)
        language = self.language(words, locale)
        for one in self._classes:
            if any(each.classes[one.name].phrases.found(words) for each in self.languages.values()):
                advice = language.classes[one.name].advice
                said = (advice, *language.recommendations)
                return Verdict(one.name, one.priority, one.category, said)
        otherwise = self._otherwise
        return Verdict(None, otherwise.priority, otherwise.category, language.recommendations)

    def language(self, words: Sequence[str], locale: str | None = None) -> Language:
        """Return the language to answer in: the one asked for, else the text's own."""
        asked = (locale or "").casefold().replace("_", "-").partition("-")[0]
        if asked in self.languages:
            return self.languages[asked]
        # English goes first, so that a text in no known language is answered in it.
        ordered = sorted(self.languages, key=lambda name: (name != "en", name))
        return self.languages[max(ordered, key=lambda name: self._hits(name, words))]

    def _hits(self, name: str, words: Sequence[str]) -> int:
        return self.languages[name].usual.count(words)


def _names(place: Traversable | Path, problems: list[str]) -> list[str]:
    try:
        found = sorted(entry.name for entry in place.iterdir())
    except OSError as exc:
        problems.append(f"{place} cannot be read: {exc.strerror}")
        return []
    return [name for name in found if _LANGUAGE.fullmatch(name)]


def _read(path: Traversable | Path, model: type[Any], problems: list[str]) -> Any:
    try:
        return model.model_validate(nesting.toml(path.read_text(encoding="utf-8")))
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, error["loc"]))
        problems.append(f"{path.name}: {where}: {error['msg']}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, nesting.TooDeep) as exc:
        problems.append(f"{path.name}: {exc}")
    except OSError as exc:
        problems.append(f"{path.name} cannot be read: {exc.strerror}")
    return None


def _shipped() -> Traversable | Path:
    try:
        return resources.files("itdesk_etc") / "assist"
    except ModuleNotFoundError:  # a checkout that was not installed
        return Path(__file__).parents[2] / "etc" / "assist"
