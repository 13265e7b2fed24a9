"""S-34, S-35: no secret reaches a line, and nothing that is logged breaks one."""

import gc
import logging
import secrets
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itdesk.runtime import log as logs
from itdesk.runtime.redact import Redactor, sensitive

from .conftest import Lines, OpenLog, Rig

log = logs.get_logger("api")


def test_a_line_tells_time_level_component_event_and_fields(lines: Lines) -> None:
    log.info("ticket assigned", ticket=7, assignee="alice", tags=["a", 1, None, True, 1.5])
    (line,) = lines.events()
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "api",
        "event": "ticket assigned",
        "ticket": 7,
        "assignee": "alice",
        "tags": ["a", 1, None, True, 1.5],
    }


def test_fields_may_also_come_as_extra_and_never_replace_the_envelope(lines: Lines) -> None:
    log.info("x", extra={"ticket": 7, "event": "forged", "time": "never"}, level="loud")
    (line,) = lines.events()
    assert (line["ticket"], line["event"], line["level"]) == (7, "x", "info")
    assert (line["event_"], line["level_"], line["time_"]) == ("forged", "loud", "never")


def test_request_and_trace_ids_are_on_every_line_within(lines: Lines) -> None:
    with logs.bound(request_id="r-1", trace_id="t-1"):
        log.info("ours")
        logging.getLogger("asyncpg").warning("theirs")
    log.info("outside")
    ours, theirs, outside = lines.events()
    assert (ours["request_id"], ours["trace_id"]) == ("r-1", "t-1")
    assert (theirs["request_id"], theirs["logger"]) == ("r-1", "asyncpg")
    assert "request_id" not in outside


def test_standard_logging_and_warnings_come_through_the_same_pipe(open_log: OpenLog) -> None:
    lines = open_log()
    logging.getLogger("aiohttp.server").error("bad %s from %s", "request", "here", extra={"n": 1})
    logging.getLogger("yoyo").warning("not %d", "a number")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old habit", stacklevel=1)
    first, second, third = lines.events()
    assert (first["event"], first["n"]) == ("bad request from here", 1)
    assert second["event"] == "not %d"
    assert "old habit" in third["event"]


def test_an_exception_is_one_line_with_its_traceback(lines: Lines) -> None:
    try:
        raise ValueError("wrong\nvery wrong")
    except ValueError as exc:
        log.exception("failed")
        log.error("failed", exc_info=exc)
        logging.getLogger("aiohttp").exception("failed")
    events = lines.events()
    assert len(events) == 3
    for event in events:
        assert event["error"] == "ValueError"
        assert "test_log.py" in event["exception"] and "very wrong" in event["exception"]


def test_levels_hold_for_ours_and_theirs_and_change_at_run_time(lines: Lines) -> None:
    log.debug("no")
    logging.getLogger("yoyo").debug("no")
    logs.set_level("DEBUG")
    log.debug("yes")
    logging.getLogger("yoyo").debug("yes")
    logging.getLogger("botocore").debug("signature in clear")
    logs.set_level("error")
    log.warning("no")
    _access({"path": "/"})
    assert [event["event"] for event in lines.events()] == ["yes", "yes"]
    with pytest.raises(ValueError, match="loud"):
        logs.set_level("loud")
    with pytest.raises(ValueError, match="xml"):
        logs.configure("info", "xml")


def test_the_console_shows_the_same_in_one_line(open_log: OpenLog) -> None:
    lines = open_log("info", "console")
    log.info("ticket\nassigned", ticket=7, title="a\u2028b\x1b[2J", password="hunter2hunter2")
    text = lines.raw().decode()
    assert len(text.splitlines()) == 1
    assert (
        r'info     api: ticket\nassigned ticket=7 title="a\u2028b\u001b[2J" password="***"' in text
    )


async def test_access_lines_wait_for_the_flush_that_the_supervisor_orders(
    lines: Lines, rig: Rig
) -> None:
    await rig.start(logs.LogFlush())
    _access({"method": "GET", "path": "/api/v1/tickets", "status": 200})
    assert logs._pipe.writer.buffered > 0
    await rig.clock.advance(0.2)
    assert logs._pipe.writer.buffered == 0
    (line,) = lines.events()
    assert (line["logger"], line["event"], line["status"]) == ("access", "request", 200)
    _access({"path": "/last"})
    await rig.end()
    assert logs._pipe.writer.buffered == 0
    assert lines.events()[0]["path"] == "/last"


@pytest.mark.parametrize(("last", "status"), [("1 / 0", 1), ("raise SystemExit(3)", 3)])
def test_what_is_buffered_is_written_at_exit_and_never_to_stdout(last: str, status: int) -> None:
    program = (
        "from itdesk.runtime import log\n"
        "log.get_logger('cli').info('before', token='sesame-sesame')\n"
        "log.configure()\n"
        "log.access_line({'path': '/last'}, '/last')\n"
        f"{last}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == status
    before, access, *crash = (orjson.loads(line) for line in done.stderr.splitlines())
    assert (before["event"], before["token"]) == ("before", "***")
    assert access["path"] == "/last"
    if status == 1:
        assert (crash[0]["level"], crash[0]["error"]) == ("critical", "ZeroDivisionError")


# -- S-34: secrets

KNOWN = {
    "password": "correct horse battery",
    "quoted": "pa'ss\"wo\\rd",
    "umlaut": "pässwörd-ünïcode",
    "uri": "p@ss/w:rd#1?x=%",
    "newline": "first-part-of-it\nsecond-part-of-it",
    "control": "ab\x01\x85\u2028cdef",
    "number": "4711081508",
    "jwt_secret": "0123456789abcdef0123456789abcdef",
    "contained": "0123456789abcdef",
    "pem": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----",
}


class Shy:
    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return f"Shy(value={self._secret})"


def _log_crash(secret: str) -> None:
    try:
        raise RuntimeError(f"cannot log in with {secret}")
    except RuntimeError:
        log.exception("crash")


def _log_chained(secret: str) -> None:
    try:
        try:
            raise KeyError(secret)
        except KeyError as exc:
            raise ExceptionGroup("all", [ValueError(repr(secret))]) from exc
    except ExceptionGroup:
        logging.getLogger("aiohttp").exception("crash %r", secret)


CHANNELS: dict[str, Callable[[str], object]] = {
    "event": lambda s: log.info(f"using {s} now"),
    "field": lambda s: log.info("x", value=s),
    "debug": lambda s: log.debug("x", value=s),
    "repr": lambda s: log.info("x", value=repr(s)),
    "json": lambda s: log.info("x", value=orjson.dumps({"v": s}).decode()),
    "nested": lambda s: log.info("x", value={"a": [{"b": (s, {s})}]}),
    "key": lambda s: log.info("x", value={s: 1}),
    "bytes": lambda s: log.info("x", value=s.encode()),
    "object": lambda s: log.info("x", value=Shy(s)),
    "exception": lambda s: log.info("x", value=OSError(s)),
    "crash": _log_crash,
    "chained": _log_chained,
    "stdlib": lambda s: logging.getLogger("asyncpg").warning("dsn %s", s, extra={"more": s}),
    "access": lambda s: _access({"path": "/x", "agent": s}),
    "long": lambda s: log.info("x", value="." * (6_000 - len(s) // 2) + s + "." * 9_000),
    "very long": lambda s: log.info("x", value="." * 99_990 + s + "." * 150_000 + s),
    "bound": lambda s: _log_bound(s),
}


def _access(fields: Mapping[str, Any]) -> None:
    """Write a line in which clients wrote everything, the names as well."""
    said = [value for value in fields.values() if isinstance(value, str)]
    with suppress(TypeError):
        said.append(orjson.dumps(fields).decode())
    logs.access_line(fields, " ".join(said))


def test_what_is_masked_over_and_over_is_looked_at_again_for_a_new_secret() -> None:
    secret = secrets.token_hex(20)
    agent = f"agent/1 {secret}"
    assert logs.redacted_often(agent) == logs.redacted_often(agent) == agent
    logs.register_secret(secret)
    assert logs.redacted_often(agent) == "agent/1 ***"


def _log_bound(secret: str) -> None:
    with logs.bound(user=secret):
        log.info("x")


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_a_registered_secret_is_in_no_line(channel: str, style: str, open_log: OpenLog) -> None:
    lines = open_log("debug", style)
    for secret in KNOWN.values():
        logs.register_secret(secret)
    for secret in KNOWN.values():
        CHANNELS[channel](secret)
    text = lines.raw().decode()
    assert len(text.splitlines()) == len(KNOWN)
    plain = text.replace("\\\\", "\\").replace('\\"', '"')
    for secret in KNOWN.values():
        for part in [secret, repr(secret)[1:-1], *secret.splitlines()]:
            if len(part) >= 6 and not part.startswith("-----"):
                assert part not in text
                assert part not in plain
    if style == "json":
        for line in text.splitlines():
            assert isinstance(orjson.loads(line), dict)


@pytest.mark.parametrize("before", range(5_975, 6_001, 5))
def test_no_part_of_a_secret_survives_where_a_long_text_is_cut(lines: Lines, before: int) -> None:
    logs.register_secret("swordfish-and-chips-tonight")
    log.info("x", value="." * before + "swordfish-and-chips-tonight" + "." * 9_000)
    text = lines.raw().decode()
    assert not any(part in text for part in ("sword", "chips", "night"))


def test_no_part_survives_of_a_secret_that_contains_another(lines: Lines) -> None:
    for secret in ("swordfish", "swordfish-and-chips", "the swordfish-and-chips"):
        logs.register_secret(secret)
    log.info("x", value="<the swordfish-and-chips><swordfish-and-chips><swordfish>")
    assert lines.events()[0]["value"] == "<***><***><***>"


def test_a_line_out_of_a_secret_of_several_lines_is_masked(lines: Lines) -> None:
    logs.register_secret(KNOWN["pem"])
    log.info("x", value="near MIIEvQIBADANBgkq in -----BEGIN PRIVATE KEY-----")
    assert lines.events()[0]["value"] == "near *** in -----BEGIN PRIVATE KEY-----"


def test_a_registered_number_is_masked_and_the_line_stays_json(lines: Lines) -> None:
    logs.register_secret("4711081508")
    log.info("x", pin_code=4711081508, amount=12)
    (line,) = lines.events()
    assert (line["pin_code"], line["amount"]) == ("***", 12)


def test_a_secret_too_short_to_be_told_from_text_is_ignored(lines: Lines) -> None:
    logs.register_secret("abc")
    logs.register_secret("")
    log.info("abcdef")
    assert lines.events()[0]["event"] == "abcdef"


@pytest.mark.parametrize(
    "name",
    [
        *("password", "Password", "new_password", "passwd", "pwd", "passphrase", "client_secret"),
        *("token", "access_token", "refreshToken", "Authorization", "Proxy-Authorization"),
        *("cookie", "Set-Cookie", "api_key", "apiKey", "X-Api-Key", "signature", "otp", "jwt"),
        *("X-Amz-Signature", "x-hub-signature-256", "private_key", "credentials"),
        *("smtp_pass", "hmac_key", "aws_secret_access_key", "signing_key"),
    ],
)
def test_a_field_with_such_a_name_shows_no_value_at_any_depth(name: str, lines: Lines) -> None:
    planted: Any = "swordfish-1"
    log.info("x", **{name: planted})
    log.info("x", headers={name: planted}, pairs=[(name, planted)], deep={"a": [{name: [planted]}]})
    logging.getLogger("aiohttp").error("x", extra={name: {"value": planted}})
    _access({"path": "/", name: planted, "query": {name: planted}})
    log.info("x", absent={name: None, "has": {name: True}})
    text = lines.raw()
    assert b"swordfish" not in text
    assert text.count(b"***") == 7
    assert orjson.loads(text.splitlines()[-1])["absent"] == {name: None, "has": {name: True}}


def test_ordinary_names_are_left_alone() -> None:
    for name in ("ticket", "path", "author", "keys", "passed", "description", "pinned", "assigned"):
        assert not sensitive(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://desk:swordfish@db:5432/desk", "postgres://desk:***@db:5432/desk"),
        ("redis://:sword@fish@cache/0", "redis://:***@cache/0"),
        ("see https://host:8000/a?b=1 and a@b.c", "see https://host:8000/a?b=1 and a@b.c"),
        ("Authorization: Bearer swordfish.x.y", "Authorization: ***"),
        ("sent bearer swordfish-123 to it", "sent bearer *** to it"),
        ("Cookie: sid=swordfish; theme=dark", "Cookie: ***"),
        ("GET /x?X-Amz-Signature=swordfish&y=1", "GET /x?X-Amz-Signature=***&y=1"),
        ("GET /ws?token=swordfish HTTP/1.1", "GET /ws?token=*** HTTP/1.1"),
        ("Login(name='bob', password='sword fish')", "Login(name='bob', password=***)"),
        ("Login(password=b'swordfish', n=1)", "Login(password=***, n=1)"),
        ("{'api_key': 'swordfish', 'n': 1}", "{'api_key': ***, 'n': 1}"),
        ('{"secret": "swordfish", "n": 1}', '{"secret": ***, "n": 1}'),
        (r"{\"secret\": \"swordfish\"}", r"{\"secret\": ***}"),
        ("SMTP_PASS=swordfish passed=3", "SMTP_PASS=*** passed=3"),
        ("password='swordfish cut off", "password=***"),
        ("bad [type=short, input_value='swordfish', x]", "bad [type=short, input_value=***, x]"),
        ("got eyJhbGciOiJub25l.eyJzdWIiOiIxIn0.swordfish!", "got ***!"),
        ("auth.jwt_secret: must have 32 bytes", "auth.jwt_secret: must have 32 bytes"),
        ("the token expired", "the token expired"),
    ],
)
def test_a_secret_is_known_by_its_shape_too(text: str, shown: str, lines: Lines) -> None:
    assert Redactor().text(text) == shown
    assert logs.redacted(text) == shown
    log.info(text)
    log.info("x", value=[text])
    _access({"path": text})
    first, second, third = lines.events()
    assert (first["event"], second["value"], third["path"]) == (shown, [shown], shown)


def test_what_nobody_catches_is_logged_without_its_secrets(lines: Lines) -> None:
    logs.register_secret("swordfish-2")

    def fail() -> None:
        raise RuntimeError("swordfish-2")

    thread = threading.Thread(target=fail, name="failing")
    thread.start()
    thread.join()

    class Leaky:
        def __del__(self) -> None:
            raise RuntimeError("swordfish-2")

    Leaky()
    gc.collect()
    try:
        fail()
    except RuntimeError as exc:
        sys.excepthook(type(exc), exc, exc.__traceback__)
    raw = lines.raw()
    events = [orjson.loads(line) for line in raw.splitlines()]
    assert [event["level"] for event in events] == ["error", "error", "critical"]
    assert events[0]["thread"] == "failing"
    assert b"swordfish" not in raw


@pytest.mark.parametrize("text", ["a" * 50_000, "token" * 10_000, "://a:" * 10_000, "eyJ" * 20_000])
@pytest.mark.parametrize("end", ["", "='", ": '", "@"])
def test_hostile_text_costs_linear_time(text: str, end: str) -> None:
    redactor = Redactor()
    before = _cost(lambda: redactor.text((text + end) * 3))
    assert before < 0.5


def _cost(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


# -- S-35: injection

INJECTIONS = [
    "two\nlines",
    "carriage\rreturn\r\n",
    '"}\n{"event":"forged","level":"info"}',
    "\x00\x01\x07\x08\x0b\x0c\x1b[31mred\x1b]0;title\x07",
    "\x7f\x80\x85\x9b31m",
    "\u2028\u2029\u200e\u202egnp.exe\u2066",
    "\ud800 lone \udfff",
    "\U0001f600 fine",
    "%s %n %(levelname)s {0} {x!r}",
    "<script>alert(1)</script>",
    "\\u000a \\n",
    "x" * 100_000,
]


def _cyclic() -> dict[str, object]:
    cycle: dict[str, object] = {}
    cycle["self"] = cycle
    return cycle


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


ODD: list[object] = [
    _cyclic(),
    Broken(),
    {Broken(): 1, (1, 2): 2, None: 3},
    float("nan"),
    float("inf"),
    2**200,
    -(2**63) - 1,
    10**5000,
    b"\xff\xfe\n",
    SimpleNamespace(a="\n"),
    {"a", "b"},
    list(range(1000)),
]


def _everywhere(value: Any) -> int:
    """Log the value in every place where one can stand; returns the number of events."""
    text = value if isinstance(value, str) else "x"
    log.info(text)
    log.info("x", value=value, nested={text: [value, {"v": value}]})
    log.info("x", **{text: value})
    logs.get_logger(text).info("x")
    with logs.bound(request_id=value):
        log.warning("x")
    logging.getLogger("aiohttp").error(value, extra={"value": value})
    logging.getLogger("aiohttp").error("%s and %r", text, text)
    _access({"path": value, "agent": text})
    try:
        raise ValueError(value)
    except ValueError as exc:
        log.exception(text)
        log.info("x", error=exc)
    return 10


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("value", [*INJECTIONS, *ODD], ids=lambda _: "")
def test_one_event_is_one_line_whatever_it_carries(
    value: object, style: str, open_log: OpenLog
) -> None:
    lines = open_log("info", style)
    events = _everywhere(value)
    text = lines.raw().decode("utf-8")
    shown = text.splitlines()
    assert len(shown) == events
    for line in shown:
        assert line.isprintable()
        assert len(line) < 70_000
        if style == "json":
            event = orjson.loads(line)
            assert event["level"] in logs.LEVELS
            assert event["event"] != "a line could not be rendered"
            assert event["event"] != "forged"


def test_injected_text_is_still_readable_in_the_parsed_line(lines: Lines) -> None:
    log.info("x", value="a\nb\u2028c\x9bd\U0001f600")
    assert lines.events()[0]["value"] == "a\nb\u2028c\x9bd\U0001f600"


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.text(st.characters()),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
        max_leaves=10,
    ),
)
def test_anything_at_all_is_one_line_of_json(lines: Lines, text: str, value: object) -> None:
    log.info(text, value=value)
    _access({"path": text, "value": value})
    first, second = lines.events()
    assert (first["logger"], second["logger"]) == ("api", "access")


def test_nobody_reading_the_log_never_blocks_the_caller(open_log: OpenLog) -> None:
    lines = open_log()
    for number in range(3_000):
        log.info("x", number=number, padding="p" * 2_000)
    writer = logs._pipe.writer
    assert writer.dropped > 0
    first = lines.raw()
    log.info("somebody reads again")
    told = [orjson.loads(line) for line in (first + lines.raw()).splitlines()]
    assert told[-2]["event"] == "lines dropped: nobody reads them"
    assert told[-2]["lines"] == writer.dropped
    assert len(told) - 2 + writer.dropped == 3_000
