"""What a plugin must be, what its hooks may return, and what is said when it is not so."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal

import pluggy
from pydantic import BaseModel, Field, SecretStr, ValidationError

from itdesk import hookspecs
from itdesk.desk.discovery import Found, Refused
from itdesk.errors import ConfigError, DeskError
from itdesk.hookspecs import (
    Health,
    IdentityProvider,
    JobType,
    LanguageModel,
    Mailer,
    Passage,
    ScanEngine,
    Schedule,
    Storage,
    Tracker,
)
from itdesk.runtime.log import redacted, register_secret

API = 1
HOOK_SECONDS = 5.0
START_SECONDS = 30.0
# A shorter one would be struck out of words that mean something else.
SHORTEST_SECRET = 3


class Late(Exception):
    """The plugin did not answer within its deadline."""


class Section(BaseModel):
    """The options that every `[plugins.<name>]` has beside those of the plugin's own Settings."""

    enabled: bool = True
    required: bool = False
    timeout_seconds: float | None = Field(None, gt=0)

    @property
    def hook_seconds(self) -> float:
        """Return how long a hook, or leaving, may take."""
        return self.timeout_seconds or HOOK_SECONDS

    @property
    def start_seconds(self) -> float:
        """Return how long entering may take: clients connect there, rules are compiled."""
        return self.timeout_seconds or START_SECONDS


def checked_class(plugin_class: Any, name: str) -> Any:
    """Return the class, or raise Refused with what is missing in it."""
    if not isinstance(plugin_class, type):
        raise Refused("Plugin is not a class")
    said: Any = getattr(plugin_class, "name", None)
    if said != name:
        raise Refused(f"Plugin.name is {said!r}, not {name!r}")
    api: Any = getattr(plugin_class, "itdesk_api", None)
    if api != API:
        raise Refused(f"Plugin.itdesk_api is {api!r}; this desk speaks {API}")
    settings: Any = getattr(plugin_class, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        raise Refused("Plugin.Settings is not a pydantic model")
    return plugin_class


def refuse_unmarked(plugin: object) -> None:
    """Raise Refused for a hook that pluggy would pass over without a word."""
    for attribute in dir(type(plugin)):
        is_hook = attribute.startswith("itdesk_") and hasattr(hookspecs, attribute)
        if is_hook and not hasattr(getattr(type(plugin), attribute), "itdesk_impl"):
            raise Refused(f"{attribute} is not marked with hookimpl")


def checked_result(hook: str, result: Any) -> tuple[Any, BaseException | None]:
    """Return what a hook returned, lists as lists, or what is wrong with it."""
    try:
        return _RESULTS[hook](result), None
    except BaseException as exc:  # noqa: BLE001 - looking at a plugin's object runs its code
        return None, exc


def _nothing(result: Any) -> None:
    return None


def _a(kind: type[Any]) -> Callable[[Any], Any]:
    def check(result: Any) -> Any:
        if result is not None and not isinstance(result, kind):
            promised = {*vars(kind), *kind.__annotations__}
            missing = [n for n in promised if not n.startswith("_") and not hasattr(result, n)]
            raise Refused(
                f"returned {type(result).__name__}, not {kind.__name__}:"
                f" it lacks {', '.join(sorted(missing))}"
            )
        return result

    return check


def _list(what: str, good: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def check(result: Any) -> Any:
        if isinstance(result, str | bytes):
            raise Refused(f"returned {type(result).__name__}, not a list of {what}")
        entries = list(result or ())
        if not all(map(good, entries)):
            raise Refused(f"returned something else than a list of {what}")
        return entries

    return check


# Below the plugin's own path, and nothing that a proxy could read as a way out of it.
_PATH = re.compile(r"(/(?!\.\.?(/|$))[^/]+)+")


def _is_route(route: Any) -> bool:
    """Return whether this can be served; the class itself belongs to a layer above."""
    is_one = is_dataclass(route) and type(route).__name__ == "Route"
    if not is_one:
        return False
    for model in (route.body, route.query):
        if model is not None:
            # Else the first who asks would be the one to find that it cannot be read.
            model.model_rebuild()
    return callable(route.handler) and _PATH.fullmatch(route.path) is not None


# Also a label of metrics.
_JOB = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


def _named(kind: type[JobType] | type[Schedule]) -> Callable[[Any], Any]:
    what = f"{kind.__name__}s, each with a name of its own like hello.push"
    entries = _list(what, lambda one: isinstance(one, kind) and bool(_JOB.fullmatch(one.name)))

    def check(result: Any) -> Any:
        found = entries(result)
        if len({one.name for one in found}) < len(found):
            raise Refused(f"returned something else than a list of {what}")
        return found

    return check


_RESULTS: Mapping[str, Callable[[Any], Any]] = {
    "itdesk_storage": _a(Storage),
    "itdesk_scan_engine": _a(ScanEngine),
    "itdesk_tracker": _a(Tracker),
    "itdesk_model": _a(LanguageModel),
    "itdesk_mailer": _a(Mailer),
    "itdesk_identity": _a(IdentityProvider),
    "itdesk_routes": _list("Routes with paths like /hello", _is_route),
    "itdesk_jobs": _named(JobType),
    "itdesk_schedule": _named(Schedule),
    "itdesk_reload": _nothing,
    "itdesk_health": _a(Health),
    "itdesk_metrics": _nothing,
    "itdesk_validate_ticket": _list("sentences", lambda text: isinstance(text, str)),
    "itdesk_event": _nothing,
    "itdesk_knowledge": _list("Passages", lambda one: isinstance(one, Passage)),
    "itdesk_cli": _list("click commands", lambda command: isinstance(command.name, str)),
}


def reason(exc: BaseException) -> str:
    """Return what operators may read: a stranger's message could hold a secret."""
    if isinstance(exc, DeskError):
        return redacted(exc.message)
    if isinstance(exc, Late | Refused):
        return redacted(str(exc))
    if isinstance(exc, ImportError | SyntaxError | pluggy.PluginValidationError):
        return redacted(f"{type(exc).__name__}: {exc}")
    return f"{type(exc).__name__} (the log has the trace)"


def choice(candidates: Sequence[Found], found: Mapping[str, Sequence[Found]]) -> str:
    """Return why none of these can be the plugin that a section names."""
    if not candidates:
        return f"no such plugin; there are {', '.join(sorted(found)) or 'none'}"
    return "two have this name: " + " and ".join(one.origin for one in candidates)


def validated(model: type[BaseModel], values: Mapping[str, Any], name: str) -> Any:
    """Return the settings; an option that the model does not know is an error, at any depth."""
    extra: Literal["forbid"] | None = (
        None if model.model_config.get("extra") == "allow" else "forbid"
    )
    try:
        return model.model_validate(values, extra=extra)
    except ValidationError as exc:
        problems: list[Mapping[str, str]] = []
        for error in exc.errors(include_url=False, include_context=False, include_input=False):
            option = ".".join(["plugins", name, *map(str, error["loc"])])
            known = error["type"] != "extra_forbidden"
            problems += problem_at(option, error["msg"] if known else "unknown option")
        raise config_error(problems) from None


def hide(settings: BaseModel) -> None:
    """Keep what the plugin's own settings call secret out of every log line."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            hide(value)
        elif isinstance(value, SecretStr) and len(value.get_secret_value()) > SHORTEST_SECRET:
            register_secret(value.get_secret_value())


def problem_at(option: str, text: str) -> list[Mapping[str, str]]:
    """Return one problem, as ConfigError lists them."""
    return [{"option": option, "problem": text}]


def config_error(problems: Sequence[Mapping[str, str]]) -> ConfigError:
    """Return the error that names every option at once."""
    lines = [f"{problem['option']}: {problem['problem']}" for problem in problems]
    return ConfigError("\n".join(lines), details={"problems": list(problems)})
