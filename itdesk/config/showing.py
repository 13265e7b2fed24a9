"""How the effective settings are written down: as TOML that loads again, or as JSON."""

import re
from collections.abc import Iterator, Mapping
from json import dumps
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, SecretStr

from itdesk.config.model import SECTIONS, Key, Settings, may_be
from itdesk.config.secrecy import MASK, is_secret, mask_url


def show(
    settings: Settings,
    *,
    json: bool = False,
    plugin_models: Mapping[str, type[BaseModel]] = MappingProxyType({}),
) -> str:
    """Return the effective settings as TOML, or as JSON; secrets are masked, unset is ""."""
    shown = _tree(settings, plugin_models)
    if json:
        return dumps(shown, indent=2)
    return "\n".join(_toml(shown, ())).strip() + "\n"


def _tree(settings: Settings, plugin_models: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    shown = {name: _shown((name,), getattr(settings, name)) for name in SECTIONS}
    # A plugin that has a model is shown with its defaults, also when it is off.
    plugins = {**dict.fromkeys(plugin_models, {"enabled": False}), **settings.plugins}
    shown["plugins"] = {
        name: _shown(("plugins", name), _with_model(raw, plugin_models.get(name)))
        for name, raw in sorted(plugins.items())
    }
    return shown


def _with_model(raw: Any, model: object) -> Any:
    """Return a plugin's section with the defaults, and as secrets what its model calls so."""
    if not (isinstance(raw, Mapping) and isinstance(model, type) and issubclass(model, BaseModel)):
        return raw
    full = dict(raw)
    for name, info in model.model_fields.items():
        key = info.alias or name
        if key not in raw:
            if not info.is_required():
                full[key] = info.get_default(call_default_factory=True)
        elif may_be(info, SecretStr) and raw[key]:
            full[key] = SecretStr(MASK)
        else:
            full[key] = _with_model(raw[key], info.annotation)
    return full


def _shown(key: Key, value: object) -> Any:
    """Return a value as TOML and JSON can hold it, secrets masked."""
    if isinstance(value, SecretStr):
        return mask_url(value.get_secret_value()) if key == ("database", "url") else MASK
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        value = {info.alias or name: getattr(value, name) for name, info in fields}
    if isinstance(value, Mapping):
        return {str(name): _shown((*key, str(name)), item) for name, item in value.items()}
    if value is None or value == "" or isinstance(value, bool):
        return value
    if is_secret(key):
        return MASK
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_shown((*key, "item"), item) for item in value]
    return value if isinstance(value, (int, float)) else mask_url(str(value))


def _toml(table: Mapping[str, Any], prefix: Key) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    if prefix and (len(inner) < len(table) or not table):
        yield f"\n[{'.'.join(map(_toml_key, prefix))}]"
    for key, value in table.items():
        if key not in inner and (value is not None or prefix[0] != "plugins"):
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in inner.items():
        yield from _toml(value, (*prefix, key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        pairs = (f"{_toml_key(str(key))} = {_toml_value(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    text = str("" if value is None else value).encode("utf-8", "replace").decode()
    return dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
