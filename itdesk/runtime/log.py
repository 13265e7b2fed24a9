"""One event, one line, no secrets: everything the process says about itself goes through here."""

import atexit
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any

import orjson

from itdesk.runtime.actor import Actor
from itdesk.runtime.lines import LineWriter
from itdesk.runtime.redact import Redactor, Text, plain

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
FORMATS = ("json", "console")

# What some terminal or line reader takes for a line end, a command or a change of direction.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LONG = 8_192
_ACCESS = {"level": "info", "logger": "access", "event": "request"}
_CORE = ("time", "level", "logger", "event")
_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# At DEBUG these print signatures, cookies and whole bodies.
_QUIET = ("aiobotocore", "botocore", "urllib3", "asyncio")


class Pipe:
    """Where all events of the process come together and become lines."""

    def __init__(self, fd: int = 2) -> None:
        self.redactor = Redactor()
        self.level = LEVELS["info"]
        self.console = False
        self.writer = LineWriter(fd, self._notice)

    def open(self, fd: int) -> None:
        """Write to this descriptor from now on."""
        self.writer.flush()
        self.writer = LineWriter(fd, self._notice)

    def event(self, level: str, logger: str, event: object, fields: Mapping[str, Any]) -> None:
        """Write one event; whatever is wrong with it, neither the caller nor the line breaks."""
        try:
            line = self._render(level, logger, event, fields)
        except Exception as exc:  # noqa: BLE001 - logging must never be what fails
            problem = {"problem": type(exc).__name__}
            line = self._render("error", "log", "a line could not be rendered", problem)
        self.writer.write(line)

    def access(self, fields: Mapping[str, Any], said: str) -> None:
        """Write one request's line, at the next flush."""
        whole = {"time": datetime.now(UTC), **_ACCESS, **fields}
        try:
            line = orjson.dumps(whole, option=orjson.OPT_UTC_Z)
        except TypeError:
            self.writer.append(self._render("info", "access", "request", fields))
            return
        if self.console or len(line) > _LONG or self.redactor.masks(said):
            line = self._render("info", "access", "request", fields)
        elif not line.isascii():
            line = _one_line(line.decode())
        self.writer.append(line)

    def _render(self, level: str, logger: str, event: object, fields: Mapping[str, Any]) -> bytes:
        named = {f"{name}_" if name in _CORE else name: value for name, value in fields.items()}
        # Nearly all lines are clean, and one search through a line is cheaper than one per string.
        line = self._line(level, logger, event, named, self.redactor.quick)
        if self.redactor.suspicious(line):
            line = self._line(level, logger, event, named, self.redactor.text)
        return _one_line(line)

    def _line(
        self, level: str, logger: str, event: object, fields: Mapping[str, Any], text: Text
    ) -> str:
        now = datetime.now(UTC)
        said = plain(event, text)
        rest = plain(fields, text)
        assert isinstance(rest, dict)
        if self.console:
            shown = "".join(f" {_bare(key)}={_json(value)}" for key, value in rest.items())
            return f"{now:%H:%M:%S.%f} {level:8} {_bare(text(logger))}: {_bare(said)}{shown}"
        head = {"time": now, "level": level, "logger": text(logger), "event": said}
        return orjson.dumps({**head, **rest}, option=orjson.OPT_UTC_Z).decode()

    def _notice(self, lost: int) -> bytes:
        return self._render("warning", "log", "lines dropped: nobody reads them", {"lines": lost})


class PipeHandler(logging.Handler):
    """Brings the events of standard logging into the pipe."""

    def emit(self, record: logging.LogRecord) -> None:
        """Turn a record into an event with fields."""
        message: object = record.msg
        with suppress(Exception):  # arguments that do not fit their format
            message = record.getMessage()
        fields = {k: v for k, v in vars(record).items() if k not in _RECORD}
        if record.stack_info:
            fields["stack"] = record.stack_info
        level = next((n for n, v in reversed(LEVELS.items()) if v <= record.levelno), "debug")
        _say(level, record.name, message, fields, record.exc_info)


# One value for all fields: setting one for each costs every request five microseconds.
_bound: ContextVar[Mapping[str, object]] = ContextVar(
    "itdesk_log_fields", default=MappingProxyType({})
)

# The one mutable global: standard logging, warnings and excepthook are process-wide as well.
_pipe = Pipe()


class Logger:
    """The voice of one component: `log.info("ticket assigned", ticket=7)`."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: object, /, **fields: Any) -> None:
        """Tell what only a search for a fault needs."""
        self._tell("debug", event, fields)

    def info(self, event: object, /, **fields: Any) -> None:
        """Tell what happens in the normal course of things."""
        self._tell("info", event, fields)

    def warning(self, event: object, /, **fields: Any) -> None:
        """Tell what somebody should look at some day."""
        self._tell("warning", event, fields)

    def error(self, event: object, /, **fields: Any) -> None:
        """Tell what somebody should look at now; `exc_info` adds a traceback."""
        self._tell("error", event, fields)

    def exception(self, event: object, /, **fields: Any) -> None:
        """Tell of the exception that is being handled, with its traceback."""
        self._tell("error", event, {"exc_info": True, **fields})

    def critical(self, event: object, /, **fields: Any) -> None:
        """Tell why the process cannot go on."""
        self._tell("critical", event, fields)

    def _tell(self, level: str, event: object, fields: dict[str, Any]) -> None:
        if LEVELS[level] >= _pipe.level:
            _say(level, self._name, event, fields, fields.pop("exc_info", None))


def get_logger(name: str) -> Logger:
    """Return the logger of a component."""
    return Logger(name)


def register_secret(value: str) -> None:
    """Replace this value by *** in every line from now on."""
    _pipe.redactor.register(value)


def redacted(text: str) -> str:
    """Return text in which secrets are masked, for what is shown outside the log."""
    return _pipe.redactor.text(text)


def redacted_often(text: str) -> str:
    """Return the same for text that comes over and over; it is remembered for a while."""
    return _pipe.redactor.known(text)


def bind(**fields: object) -> None:
    """Add fields (request_id, trace_id ...) to every line of the current task."""
    _bound.set({**_bound.get(), **fields})


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add fields to every line written within the block."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def access_line(fields: Mapping[str, Any], said: str) -> None:
    """Write one line of the access log; cheap, and visible within LogFlush.period.

    `said` is what of the fields clients wrote: only there is looked for secrets.
    """
    if _pipe.level <= logging.INFO:
        _pipe.access(fields, said)


def flush(patience: float = 0.0) -> None:
    """Write what is buffered, waiting so long for a slow reader."""
    _pipe.writer.flush(patience)


def set_level(level: str) -> None:
    """Change the level of everything at run time; ValueError names the possible ones."""
    if level.lower() not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    _pipe.level = LEVELS[level.lower()]
    logging.getLogger().setLevel(_pipe.level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(_pipe.level, logging.INFO))
    # One line a statement of every migration; what was done is said by whoever asked for it.
    detailed = logging.DEBUG if _pipe.level <= logging.DEBUG else logging.WARNING
    logging.getLogger("yoyo").setLevel(max(_pipe.level, detailed))


def configure(level: str = "info", format: str = "json", *, fd: int = 2) -> Callable[[], None]:
    """Send all that the process says, libraries included, to a descriptor; returns the undoing."""
    if format not in FORMATS:
        raise ValueError(f"log format {format!r} is none of {', '.join(FORMATS)}")
    root = logging.getLogger()
    access = logging.getLogger("aiohttp.access")
    root_level, before = root.level, (root.handlers[:], access.disabled)
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook)

    def undo() -> None:
        flush()
        root.handlers[:], access.disabled = before
        root.setLevel(root_level)
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.NOTSET)
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        logging.captureWarnings(False)
        _pipe.redactor, _pipe.level, _pipe.console = Redactor(), LEVELS["info"], False
        _pipe.open(2)

    set_level(level)
    _pipe.open(fd)
    _pipe.console = format == "console"
    # Any other handler would be a way around the redaction.
    root.handlers[:] = [PipeHandler()]
    # Our own access log takes its place: aiohttp's costs 44 us a request.
    access.disabled = True
    logging.captureWarnings(True)
    sys.excepthook, threading.excepthook, sys.unraisablehook = (
        _uncaught,
        _uncaught_in_thread,
        _unraisable,
    )
    return undo


class LogFlush(Actor):
    """Writes the buffered access log several times a second."""

    name = "log-flush"
    period = 0.2
    critical = False

    async def handle(self, message: object) -> None:
        """Write what is buffered and return at once."""
        flush()

    async def teardown(self) -> None:
        """Write what is left."""
        flush()


def _say(level: str, logger: str, event: object, fields: dict[str, Any], failure: object) -> None:
    if isinstance(extra := fields.get("extra"), Mapping):
        del fields["extra"]
        fields.update(extra)
    exc = _exception(failure)
    if exc is not None:
        fields["error"] = fields.get("error", type(exc).__name__)
        fields["exception"] = "".join(traceback.format_exception(exc))
    _pipe.event(level, logger, event, {**_bound.get(), **fields})


def _exception(failure: object) -> BaseException | None:
    if isinstance(failure, tuple):
        failure = failure[1]
    elif failure and not isinstance(failure, BaseException):
        failure = sys.exc_info()[1]
    return failure if isinstance(failure, BaseException) else None


def _uncaught(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    _say("critical", "itdesk", "uncaught exception", {}, exc)
    flush(1.0)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    thread = args.thread.name if args.thread else "unknown"
    _say("error", "itdesk", "uncaught exception in a thread", {"thread": thread}, args.exc_value)


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    where = {"where": args.err_msg or "finaliser"}
    _say("error", "itdesk", "exception that nobody could catch", where, args.exc_value)


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _bare(value: object) -> str:
    return _json(value)[1:-1] if isinstance(value, str) else _json(value)


def _one_line(line: str) -> bytes:
    # orjson escapes C0 only; a reader that splits at U+2028 or U+0085 would see two lines.
    if not line.isascii() or "\x7f" in line:
        line = _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
    return line.encode()


atexit.register(flush, 1.0)
