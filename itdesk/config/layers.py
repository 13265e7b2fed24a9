"""Where a value comes from: file, environment, flag, and the files in which secrets are."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from json import loads
from pathlib import Path
from typing import Final, NamedTuple, get_origin

from itdesk.config.model import OPTIONS, Key, dotted
from itdesk.config.names import UNUSED, VARIABLES, unknown
from itdesk.config.secrecy import is_secret
from itdesk.frozen import frozen
from itdesk.runtime import nesting

_TABLES: Final = frozenset(key[:size] for key in OPTIONS for size in range(1, len(key)))
_KEYS_FROM_FILES: Final = frozenset("access_key api_key secret_key signing_key".split())
# Empty, this one still says something: no mail is sent. Otherwise empty is unset.
_MAY_BE_EMPTY: Final = ("plugins", "smtp", "host")


class Given(NamedTuple):
    """A value, and the environment variable it came from."""

    value: object
    variable: str = ""


Layer = Mapping[Key, Given]


@frozen
class Problem:
    """What is wrong with one option, and the environment variable it came from."""

    option: str
    text: str
    variable: str = ""

    def __str__(self) -> str:
        return f"{self.option}: {self.text}" + (f" (from {self.variable})" if self.variable else "")


@dataclass(slots=True)
class Draft:
    """The values found so far; a later layer replaces what an earlier one said."""

    secrets_dir: Path
    values: dict[Key, object] = field(default_factory=dict)
    plugins_in_file: frozenset[str] = frozenset()
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _variables: dict[Key, str] = field(default_factory=dict)

    def problem(self, key: Iterable[object], text: str) -> None:
        """Note a problem of one option, with the variable that set it."""
        exact = tuple(str(part) for part in key)
        self.problems.append(Problem(dotted(exact), text, self._variables.get(exact, "")))

    def add(self, layer: Layer) -> None:
        """Put a layer over those before it."""
        for key, (value, variable) in layer.items():
            target = _secret_of(key)
            self._variables[key] = self._variables[target] = variable
            if target != key:
                value = self._read(key, value)
                if value is None:
                    continue
                if target in layer:
                    self.problem(key, f"and {target[-1]} are both given; keep one")
                    continue
            if self._accepts(target, value):
                self._put(target, value)

    def _put(self, key: Key, value: object) -> None:
        # In a plugin's section a value may take the place of a table, or a table that of a value.
        related = [other for other in self.values if other[: len(key)] == key[: len(other)]]
        if value == {} and related not in ([], [key]):
            return
        for other in related:
            del self.values[other]
        self.values[key] = value

    def _read(self, key: Key, value: object) -> str | None:
        if not isinstance(value, str) or not value:
            self.problem(key, "must be the path of a file")
            return None
        try:
            text = (self.secrets_dir / value).read_text("utf-8").strip()
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
            self.problem(key, f"names a file that cannot be read: {reason}")
            return None
        if not text:
            self.problem(key, "names an empty file")
            return None
        return text

    def _accepts(self, key: Key, value: object) -> bool:
        of_plugins = key[0] == "plugins"
        if key in OPTIONS or (of_plugins and len(key) > 2):
            return True
        if why := UNUSED.get(dotted(key)):
            name = self._variables[key] or dotted(key)
            self.warnings.append(f"{name} is set but not used: {why}; take it out")
            return False
        if not of_plugins and key not in _TABLES:
            self.problem(key, unknown(key))
        elif value != {}:
            self.problem(key, "must be a section")
        return of_plugins and len(key) == 2 and value == {}


def _secret_of(key: Key) -> Key:
    """Return the option whose value is in the file that this one names, or else the key itself."""
    target = (*key[:-1], key[-1].removesuffix("_file"))
    if key in OPTIONS or not is_secret(target):
        return key
    if target[-1].endswith("key") and target[-1] not in _KEYS_FROM_FILES:
        return key  # the path of a TLS key, which a library reads by itself
    return target


def collect(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Draft:
    """Return what file, environment and flags say, each over the one before."""
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    beside = path.parent if path else Path()
    draft = Draft(Path(credentials) if credentials else beside)
    if path is not None:
        _read_file(draft, path)
    _read_environment(draft, environ)
    draft.add(
        {tuple(name.split(".")): Given(value) for name, value in flags.items() if value is not None}
    )
    return draft


def _flatten(table: Mapping[str, object], prefix: Key = ()) -> Iterator[tuple[Key, Given]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, (*prefix, name))
        else:
            yield (*prefix, name), Given(value)


def _read_file(draft: Draft, path: Path) -> None:
    try:
        table = nesting.toml(path.read_text("utf-8"))
    except OSError as exc:
        draft.problem(["config"], f"cannot read {path}: {exc.strerror}")
    except UnicodeDecodeError:
        draft.problem(["config"], f"{path} is not UTF-8 text")
    except tomllib.TOMLDecodeError as exc:
        draft.problem(["config"], f"{path} is not valid TOML: {exc}")
    except nesting.TooDeep as exc:
        draft.problem(["config"], f"{path} is {exc}")
    else:
        plugins = table.get("plugins")
        draft.plugins_in_file = frozenset(plugins if isinstance(plugins, dict) else ())
        draft.add(dict(_flatten(table)))


def _read_environment(draft: Draft, environ: Mapping[str, str]) -> None:
    generic: dict[str, Key] = {}
    for name in sorted(environ):
        # A name without "__" is not ours to judge: Kubernetes sets ITDESK_PORT for a service.
        if name.startswith("ITDESK_") and "__" in name:
            key = tuple(name.removeprefix("ITDESK_").lower().split("__"))
            if all(key):
                generic[name] = key
            else:
                draft.problems.append(Problem(name, "is not the name of an option"))
    for names in (VARIABLES, generic):
        draft.add(_layer(draft, names, environ))
    if environ.get("REDIS_URL"):
        draft.warnings.append("REDIS_URL is set but not used: itdesk needs no Redis")


def _layer(draft: Draft, names: Mapping[str, Key], environ: Mapping[str, str]) -> Layer:
    layer: dict[Key, Given] = {}
    for name, key in names.items():
        text = environ.get(name)
        if text is None or (not text.strip() and key != _MAY_BE_EMPTY):
            continue
        given = Given(_from_text(draft, key, name, text), name)
        first = layer.setdefault(key, given)
        if first.value != given.value:
            clash = f"{first.variable} and {name} have different values; keep one"
            draft.problems.append(Problem(dotted(key), clash))
    return layer


def _from_text(draft: Draft, key: Key, name: str, text: str) -> object:
    if is_secret(key):
        return text
    text = text.strip()
    many = key in OPTIONS and get_origin(OPTIONS[key].annotation) is tuple
    if text[:1] in ("[", "{") and (many or key[0] == "plugins"):
        try:
            return loads(nesting.bounded(text))
        except ValueError:
            if many:
                draft.problems.append(Problem(dotted(key), "is not valid JSON", name))
                return []
    if many:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text
