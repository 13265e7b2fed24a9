"""Nothing is deleted that nobody asked for, and what was asked for goes in bounded batches."""

import pytest

from itdesk.desk import retention
from itdesk.desk.retention import Retention
from itdesk.model import Role
from tests.support.desk import Bench, bench_on

ALL = {
    "ITDESK_RETENTION__MAIL_BODIES_DAYS": "30",
    "ITDESK_RETENTION__AUDIT_DAYS": "30",
    "ITDESK_RETENTION__CLOSED_ATTACHMENTS_DAYS": "30",
}
_OLD_AND_NEW = """
    INSERT INTO emails (to_address, subject, body_text, body_html, kind, status, created_at)
    SELECT 'jo@example.org', 's', 'text', '<p>', 'notification', status, now() - age
    FROM unnest(ARRAY['sent', 'failed', 'queued']) AS status,
         unnest(ARRAY['31 days', '29 days']::interval[]) AS age
"""


def of(bench: Bench) -> Retention:
    return Retention(bench.desk.db, bench.desk.attachments, bench.desk.settings)


async def _filled(bench: Bench) -> None:
    agent = await bench.person(Role.AGENT)
    for days, status in ((31, "closed"), (29, "closed"), (31, "open")):
        ticket = await bench.ticket(agent)
        await bench.upload(agent, ticket, b"words", f"{status}-{days}.txt")
        await bench.scan()
        await bench.sql(
            "UPDATE tickets SET status = $2, closed_at = CASE WHEN $2 = 'closed'"
            " THEN now() - make_interval(days => $3) END WHERE id = $1", ticket.id, status, days,
        )  # fmt: skip
    await bench.sql(_OLD_AND_NEW)
    await bench.sql(
        "INSERT INTO events (type, created_at, seq) SELECT 'auth.login',"
        " now() - make_interval(days => 25 + n), n FROM generate_series(1, 10) AS n"
    )


async def test_by_default_nothing_old_is_deleted(database_url: str) -> None:
    """All off: the schedule does not even run."""
    async with bench_on(database_url) as bench:
        await _filled(bench)
        assert of(bench).schedule().seconds == 0
        assert await of(bench).apply() == {}


async def test_what_was_asked_for_is_deleted_and_nothing_younger(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old mail bodies, audit events and files of closed tickets, however small the batches."""
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "FILES", 1)
    async with bench_on(database_url, **ALL) as bench:
        await _filled(bench)
        assert of(bench).schedule().seconds > 0
        done = await of(bench).apply()
        assert done == {"mail_bodies": 2, "audit": 6, "attachments": 1}
        kept = "SELECT string_agg(original_filename, ' ' ORDER BY id) FROM attachments"
        assert await bench.sql(kept) == "closed-29.txt open-31.txt"
        assert len(bench.objects("clean")) == 2
        bodies = "SELECT count(*) FROM emails WHERE body_text <> '' AND body_html IS NOT NULL"
        assert await bench.sql(bodies) == 4
        assert await bench.sql("SELECT count(*) FROM events WHERE type = 'auth.login'") == 4
        assert await bench.sql("SELECT count(*) FROM events WHERE ticket_id IS NOT NULL") == 10
        told = "SELECT count(*) FROM events WHERE type = 'retention.applied'"
        assert await bench.sql(told) == 1
        assert await of(bench).apply() == {}
