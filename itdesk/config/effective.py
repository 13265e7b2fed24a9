"""What is in effect: values become sections, and what was left open is decided."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from itdesk.config.layers import Draft
from itdesk.config.model import (
    OPTIONS,
    RESERVED_PLUGIN_KEYS,
    SECTIONS,
    HostKeys,
    Key,
    LocalStorage,
    Section,
    Settings,
    may_be,
    plugin_options,
)

# What switches a known plugin on: each alternative is a set of options that must all be there.
ADDRESSES: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        "clamav": (("host",), ("socket",)),
        "s3": (("endpoint", "bucket"),),
        "smtp": (("host",),),
        "jira": (("base_url",), ("webhook_secret",)),
        "ollama": (("base_url",),),
        "google": (("client_id",),),
        "oidc": (("issuer", "client_id"),),
    }
)


def settle(draft: Draft, state_dir: Path, failpoints: frozenset[str]) -> Settings:
    """Return the settings of a draft, with defaults in the place of what is wrong in it."""
    return _decided(
        Settings.model_validate(
            {
                **_sections(draft),
                "plugins": _plugins(draft),
                "state_dir": state_dir,
                "failpoints": failpoints,
            }
        )
    )


def _sections(draft: Draft) -> dict[str, Section]:
    for key in [key for key in draft.values if key in OPTIONS]:
        value, info = draft.values[key], OPTIONS[key]
        if value == "" and may_be(info, NoneType):
            del draft.values[key]
        elif isinstance(value, bool) and info.annotation is int:
            draft.problem(key, "should be a whole number")
            del draft.values[key]
    return {name: _section(draft, name, model) for name, model in SECTIONS.items()}


def _section(draft: Draft, name: str, model: type[Section]) -> Section:
    try:
        return model.model_validate(_nest(draft.values, (name,)))
    except ValidationError as exc:
        for key, texts in _by_option(name, exc.errors()).items():
            draft.problem(key, "; ".join(texts))
            del draft.values[key]
    # The rest of the section still takes part in the rules that follow.
    return model.model_validate(_nest(draft.values, (name,)))


def _nest(values: Mapping[Key, object], prefix: Key) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        if key[: len(prefix)] != prefix or len(key) == len(prefix):
            continue
        node = tree
        for name in key[len(prefix) : -1]:
            node = node.setdefault(name, {})
        node[key[-1]] = value
    return tree


def _by_option(name: str, errors: Iterable[ErrorDetails]) -> dict[Key, list[str]]:
    found: dict[Key, list[str]] = {}
    for error in errors:
        # Behind the option, the place says which item of a list and which type of a union it was.
        place = (name, *map(str, error["loc"]))
        size = next(size for size in range(len(place), 0, -1) if place[:size] in OPTIONS)
        items = [part for part in error["loc"][size - 1 :] if isinstance(part, int)]
        where = f"item {items[0] + 1} " if items else ""
        text, texts = where + _said(error), found.setdefault(place[:size], [])
        if text not in texts:
            texts.append(text)
    return found


def _said(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)


def _plugins(draft: Draft) -> dict[str, dict[str, Any]]:
    names = sorted({key[1] for key in draft.values if key[0] == "plugins"})
    return {name: _plugin(draft, name) for name in names}


def _plugin(draft: Draft, name: str) -> dict[str, Any]:
    raw = _nest(draft.values, ("plugins", name))
    try:
        host = HostKeys.model_validate(
            {key: value for key, value in raw.items() if key in RESERVED_PLUGIN_KEYS}
        )
    except ValidationError as exc:
        for error in exc.errors():
            draft.problem(("plugins", name, *error["loc"]), _said(error))
        host = HostKeys()
    return {
        "enabled": _is_on(draft, name, raw, host.enabled),
        **host.model_dump(exclude={"enabled"}, exclude_unset=True),
        **plugin_options(raw),
    }


def _is_on(draft: Draft, name: str, raw: Mapping[str, Any], enabled: bool | None) -> bool:
    if enabled is False:
        return False
    ways = ADDRESSES.get(name)
    if ways is None or any(all(raw.get(option) for option in way) for way in ways):
        return True
    named = {option for way in ways for option in way}
    if any(raw.get(option) == "" for option in named):
        return False
    if enabled or (name == "clamav" and name in draft.plugins_in_file):
        return True  # clamav has a default address
    if name in draft.plugins_in_file:
        missing = " and ".join(option for option in ways[0] if not raw.get(option))
        draft.warnings.append(f"plugins.{name} is off: {missing} is not set")
    return False


def _decided(settings: Settings) -> Settings:
    """Fill in what was left to itdesk."""
    on, plugins = settings.enabled_plugins(), dict(settings.plugins)
    storage, migrate = settings.storage, settings.database.migrate_on_start
    backend = storage.backend or ("s3" if "s3" in on else "local")
    mail = settings.mail.plugin or ("smtp" if "smtp" in on else None)
    ai = settings.ai.plugin or ("ollama" if "ollama" in on else None)
    verified = settings.auth.require_verified_email
    if "clamav" not in on:
        plugins.setdefault("yara", {"enabled": True})
    if backend == "local":
        plugins.setdefault("filesystem", {"enabled": True})
    local = LocalStorage(upload_dir=settings.state_dir / storage.local.upload_dir)
    decided: dict[str, dict[str, object]] = {
        "storage": {"backend": backend, "local": local},
        "database": {"migrate_on_start": settings.embedded if migrate is None else migrate},
        "auth": {"require_verified_email": mail is not None if verified is None else verified},
        "mail": {"plugin": mail},
        "ai": {"plugin": ai},
    }
    sections = {
        name: getattr(settings, name).model_copy(update=update) for name, update in decided.items()
    }
    return settings.model_copy(update={**sections, "plugins": plugins})
