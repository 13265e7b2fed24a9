"""What Prometheus sees of a live daemon: all documented, each fault in it, alerts that fire."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from itdesk import daemon
from itdesk.actors.hub import Hub
from tests.support.daemon import Live, make_daemon, running
from tests.support.desk import bench_on
from tests.support.load import eventually
from tests.support.postgres import Server

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "etc/prometheus-rules.yml"
DASHBOARD = ROOT / "etc/grafana-dashboard.json"
NAME = re.compile(r"\bitdesk_[a-z0-9_]+")
PARTS = ("_bucket", "_count", "_sum")

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(pg_server: Server) -> AsyncIterator[Live]:
    """A daemon whose clamd nobody answers for, and whose websockets must be quick to sign in."""
    url = await pg_server.create()
    quick = {"ITDESK_JOBS__POLL_SECONDS": "1", "ITDESK_HUB__AUTH_SECONDS": "1"}
    try:
        clamd = {"CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": "9"}
        async with running(make_daemon(url, **clamd, **quick)) as live:
            yield live
    finally:
        await pg_server.drop(url)


async def _page(live: Live) -> str:
    return (await live.nobody.call("GET", "/metrics")).raw.decode()


async def _samples(live: Live) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(await _page(live))
        for sample in family.samples
    }


def _table() -> dict[str, tuple[str, set[str]]]:
    """Return, by metric, who has it and its labels: the README's table."""
    section = (ROOT / "README.md").read_text().partition("### Metrics")[2].partition("\n### ")[0]
    row = r"^\| `(itdesk_\w+)(?:\{([\w, ]+)\})?` \| (\w+) \|"
    rows = re.findall(row, section, flags=re.M)
    table = {name: (whose, set(labels.split(", ")) - {""}) for name, labels, whose in rows}
    assert len(rows) == len(table) > 20
    return table


def _documented() -> dict[str, str]:
    return {name: whose for name, (whose, _) in _table().items()}


def _served(page: str) -> set[str]:
    return set(re.findall(r"^# TYPE (itdesk_\w+) ", page, flags=re.M))


@pytest.mark.asyncio(loop_scope="module")
async def test_every_metric_of_a_live_daemon_is_documented_and_no_other(live: Live) -> None:
    """S2-58, O-12: the table of the README is what /metrics serves, labels included."""
    page, table = await _page(live), _table()
    assert _served(page) == {name for name, (whose, _) in table.items() if whose == "itdesk"}
    for name, labels in await _samples(live):
        if name.startswith("itdesk_"):
            family = name if name in table else re.sub(rf"({'|'.join(PARTS)})$", "", name)
            assert {key for key, _ in labels} - {"le"} == table[family][1], name


def test_every_metric_of_our_plugins_is_documented_and_no_other() -> None:
    """What a plugin adds has a row with the plugin's name."""
    made = {
        (name, path.relative_to(ROOT / "plugins").parts[0].removesuffix(".py").partition("_")[0])
        for path in (ROOT / "plugins").rglob("*.py")
        for name in re.findall(
            r"\.(?:counter|gauge|histogram)\(\s*\"(itdesk_\w+)\"", path.read_text()
        )
    }
    assert made == {(name, whose) for name, whose in _documented().items() if whose != "itdesk"}


def _expressions() -> Iterator[str]:
    yield RULES.read_text()
    dashboard = json.loads(DASHBOARD.read_text())
    yield from (variable["query"] for variable in dashboard["templating"]["list"])
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_alerts_and_dashboard_ask_for_metrics_that_exist() -> None:
    """Each name in a query is in the table, whose names are those of a live daemon."""
    known = set(_documented())
    asked = {name for expression in _expressions() for name in NAME.findall(expression)}
    histograms = {name for name in known if name.endswith("_seconds")}
    served = known | {name + part for name in histograms for part in PARTS}
    assert asked and asked - served == set()
    used = {re.sub(rf"({'|'.join(PARTS)})$", "", name) for name in asked}
    ours = {name for name, whose in _documented().items() if whose == "itdesk"}
    assert ours - used == {
        "itdesk_actor_mailbox_dropped_total",
        "itdesk_storage_removed_total",
        "itdesk_websocket_frames_total",
    }


def test_the_panels_of_the_dashboard_are_told_apart() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len({p["title"] for p in panels})
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


def _promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_else_does_not(tmp_path: Path) -> None:
    """O-12: promtool runs each rule on what provokes it, and all of them on a desk that is well."""
    _promtool("check", "rules", str(RULES))
    cases = (ROOT / "tests/support/alerts.yml").read_text()
    path = tmp_path / "alerts.yml"
    path.write_text(cases.replace("RULES", str(RULES)))
    _promtool("test", "rules", str(path))
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    silent = set(re.findall(r"alertname: (\w+), eval_time: \w+, exp_alerts: \[\]", cases))
    fired = set(re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n +- exp", cases))
    assert alerts and fired == silent == alerts


def test_an_alert_that_cannot_fire_is_noticed(tmp_path: Path) -> None:
    """The cases above are no formality: a wrong threshold fails them."""
    rules = RULES.read_text().replace("(itdesk_jobs_oldest_seconds) > 600", "(itdesk_ready) > 600")
    shutil.copy(ROOT / "tests/support/alerts.yml", tmp_path)
    (tmp_path / "rules.yml").write_text(rules)
    path = tmp_path / "alerts.yml"
    path.write_text(path.read_text().replace("RULES", str(tmp_path / "rules.yml")))
    with pytest.raises(AssertionError, match="ItdeskJobsLate"):
        _promtool("test", "rules", str(path))


async def _provoke(live: Live) -> None:
    """Let a job be overdue, one be given up, one be left behind by a dead daemon, a file wait."""
    conn: Any = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
    try:
        await conn.execute(
            "INSERT INTO jobs (id, type, args, state, run_at, owner, lease_until, attempts, epoch)"
            " VALUES (gen_random_uuid(), 'gone.tell', '{}', 'waiting',"
            "         now() - interval '1 hour', NULL, NULL, 0, 0),"
            "        (gen_random_uuid(), 'mail.deliver', '[]', 'leased',"
            "         now(), 'dead', now() - interval '1 hour', 1, 1)"
        )
    finally:
        await conn.close()
    person = await live.person()
    (await person.upload((await person.ticket())["key"], b"waits")).expect(201)


async def _refused_websocket(live: Live) -> None:
    async with ClientSession() as http, http.ws_connect(f"{live.url}/ws/nobody") as ws:
        await ws.receive(timeout=20)


@pytest.mark.asyncio(loop_scope="module")
async def test_each_fault_shows_in_the_metrics_within_half_a_minute(live: Live) -> None:
    """O-12: late job, dead job, lease steal, scan backlog, breaker, websocket drop, degradation."""
    await asyncio.gather(_provoke(live), _refused_websocket(live))
    seen: Samples = {}

    def at(name: str, **labels: str) -> float:
        return seen.get((name, frozenset(labels.items())), 0.0)

    async def all_visible() -> bool:
        nonlocal seen
        seen = await _samples(live)
        drops = sum(v for (name, _), v in seen.items() if name == "itdesk_websocket_dropped_total")
        return (
            at("itdesk_jobs_oldest_seconds", type="gone.tell") > 3000
            and at("itdesk_jobs_dead") == 1
            and at("itdesk_jobs_stolen_total") == 1
            and at("itdesk_scan_backlog") == 1
            and at("itdesk_scan_oldest_seconds") > 0
            and at("itdesk_breaker_open", part="scanner") == 1
            and at("itdesk_degraded", part="scanner") == 1
            and at("itdesk_degraded", part="database") == 0
            and at("itdesk_ready") == 1
            and drops == 1
        )

    await eventually(all_visible, seconds=30)


async def test_what_the_metrics_rest_on_is_looked_at_often_enough(database_url: str) -> None:
    """O-12: with the settings as shipped, everything that is counted is counted within 30 s."""
    async with bench_on(database_url) as bench:
        supervisor = daemon._actors(bench.desk, Hub(bench.desk), None)
        periods = {name: k.actor.period for name, k in supervisor._keepers.items()}
    for name in ("worker", "scanner", "sequencer", "watch", "hub"):
        period = periods[name]
        assert period is not None and period <= 15, name
