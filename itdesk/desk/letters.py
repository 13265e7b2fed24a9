"""What mails say: templates as files, filled with values that cannot be more than text.

A template is `<name>.txt`: a line `Subject: ...`, an empty line, and the text, with `$name` where a
value goes. The HTML is made from the text unless there is a `<name>.html` beside it. An operator's
directory takes the place of what comes with itdesk, file by file; all are checked at the start.
"""

import html
import re
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Final

from itdesk.errors import ConfigError
from itdesk.frozen import frozen

# What each template may name.
_ACCOUNT: Final = frozenset({"desk", "name", "email", "link", "code", "hours"})
TEMPLATES: Final[Mapping[str, frozenset[str]]] = {
    "verification": _ACCOUNT,
    "welcome": _ACCOUNT,
    "password_reset": _ACCOUNT,
    "account_exists": _ACCOUNT,
    "password_changed": _ACCOUNT,
    "invitation": _ACCOUNT,
    "notification": frozenset({"desk", "name", "key", "title", "what", "text", "link", "why"}),
    "digest": frozenset({"desk", "name", "text"}),
    "trial": frozenset({"desk", "email"}),
    "workflow_notice": frozenset({"desk", "name", "key", "title", "link", "text"}),
}
# Values that may have more than one line; any other is one line of this many characters at most.
_LONG: Final = frozenset({"text"})
LONGEST_VALUE: Final = 1000
LONGEST_TEXT: Final = 20_000
LONGEST_SUBJECT: Final = 200

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_CONTROLS_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


@frozen
class Letter:
    """A subject and a body, as text and as HTML."""

    subject: str
    text: str
    html: str | None


@frozen
class _Parts:
    subject: Template
    text: Template
    html: Template | None


def one_line(value: object, longest: int = LONGEST_VALUE) -> str:
    """Return a value as one line without control characters, cut where it is too long."""
    line = " ".join(_CONTROLS.sub(" ", _SURROGATES.sub("\ufffd", str(value))).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def many_lines(value: object, longest: int = LONGEST_TEXT) -> str:
    """Return a value as text with line ends as they are here, cut where it is too long."""
    text = _SURROGATES.sub("\ufffd", str(value)).replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROLS_IN_TEXT.sub("", text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


class Letters:
    """All templates, read and checked; ConfigError names every file that cannot be used."""

    def __init__(self, directory: Path | None = None) -> None:
        self._parts: dict[str, _Parts] = {}
        problems = []
        for name, known in TEMPLATES.items():
            try:
                self._parts[name] = _read(name, known, directory)
            except ValueError as exc:
                problems.append(f"mail.templates_dir: {exc}")
        if problems:
            raise ConfigError("\n".join(problems))

    def write(self, template: str, values: Mapping[str, object]) -> Letter:
        """Return what a template says with these values; KeyError when it needs one more."""
        parts = self._parts[template]
        plain = {
            name: many_lines(value) if name in _LONG else one_line(value)
            for name, value in values.items()
        }
        text = re.sub(r"\n{3,}", "\n\n", parts.text.substitute(plain))
        if parts.html is None:
            markup = _markup(text, plain.get("link"))
        else:
            escaped = {name: html.escape(value) for name, value in plain.items()}
            markup = parts.html.substitute(
                {n: v.replace("\n", "<br>\n") if n in _LONG else v for n, v in escaped.items()}
            )
        return Letter(one_line(parts.subject.substitute(plain), LONGEST_SUBJECT), text, markup)


def _read(name: str, known: frozenset[str], directory: Path | None) -> _Parts:
    own = directory is not None and (directory / f"{name}.txt").is_file()
    place: Traversable | Path = directory if directory is not None and own else _shipped()
    text, markup = _content(place / f"{name}.txt"), None
    if (place / f"{name}.html").is_file():
        markup = _template(_content(place / f"{name}.html"), f"{name}.html", known)
    elif directory is not None and (directory / f"{name}.html").is_file():
        raise ValueError(f"{name}.html needs a {name}.txt beside it")
    first, _, body = text.partition("\n")
    if not first.startswith("Subject: ") or not first[9:].strip() or not body.strip():
        raise ValueError(f"{name}.txt must be a line `Subject: ...`, an empty line and a text")
    subject = _template(first[9:], f"{name}.txt", known)
    return _Parts(subject, _template(body.lstrip("\n"), f"{name}.txt", known), markup)


def _content(path: Traversable | Path) -> str:
    try:
        return path.read_text(encoding="utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        raise ValueError(f"{path.name} is not UTF-8") from exc
    except OSError as exc:
        raise ValueError(f"{path.name} cannot be read: {exc.strerror}") from exc


def _template(text: str, file: str, known: frozenset[str]) -> Template:
    template = Template(text)
    if not template.is_valid():
        raise ValueError(f"{file} has a $ that names nothing; write $$ for one")
    if strange := set(template.get_identifiers()) - known:
        names = ", ".join(sorted(known))
        raise ValueError(f"{file} names {', '.join(sorted(strange))}; there are {names}")
    return template


def _markup(text: str, link: str | None) -> str:
    """Return a text as HTML: its paragraphs, with its one link to click at."""
    body = html.escape(text.strip())
    if link:
        shown = html.escape(link)
        body = body.replace(shown, f'<a href="{shown}">{shown}</a>')
    paragraphs = [p.replace("\n", "<br>\n") for p in re.split(r"\n{2,}", body)]
    inner = "\n".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    head = '<!DOCTYPE html>\n<html><head><meta charset="utf-8"></head><body>'
    return f"{head}\n{inner}\n</body></html>\n"


def _shipped() -> Traversable | Path:
    try:
        return resources.files("itdesk_etc") / "mail"
    except ModuleNotFoundError:  # a checkout that was not installed
        return Path(__file__).parents[2] / "etc" / "mail"
