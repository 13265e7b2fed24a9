"""What an engineer far away wants to know of a database: numbers and states, no content."""

from typing import Any


async def server(conn: Any) -> dict[str, Any]:
    """Return the server's version, the database's size, and who is connected by which program."""
    query = """
        SELECT version() AS version, pg_database_size(current_database()) AS bytes,
               current_setting('max_connections')::int AS max_connections,
               (SELECT jsonb_object_agg(name, n) FROM (
                    SELECT coalesce(application_name, '') AS name, count(*) AS n
                    FROM pg_stat_activity WHERE datname = current_database() GROUP BY 1) AS c)
               AS connections
    """
    return dict(await conn.fetchrow(query))


async def work(conn: Any) -> dict[str, Any]:
    """Return how many jobs and mails there are in each state, and why the last ones failed."""
    jobs = await conn.fetch(
        """SELECT type, state, count(*) AS jobs, min(run_at) AS first_due FROM jobs
           GROUP BY type, state ORDER BY type, state"""
    )
    failed = await conn.fetch(
        """SELECT id, type, attempts, last_error, finished_at FROM jobs
           WHERE state = 'failed' ORDER BY finished_at DESC LIMIT 50"""
    )
    mails = await conn.fetch(
        "SELECT kind, status, count(*) AS mails FROM emails GROUP BY kind, status ORDER BY 1, 2"
    )
    files = await conn.fetch(
        """SELECT scanned_status, scan_reason, count(*) AS files FROM attachments
           GROUP BY scanned_status, scan_reason ORDER BY 1, 2"""
    )
    runs = await conn.fetch(
        """SELECT name, max(due_at) AS last_due, max(finished_at) AS last_finished
           FROM periodic_runs GROUP BY name ORDER BY name"""
    )
    found = {"jobs": jobs, "failed_jobs": failed, "mails": mails, "files": files, "schedules": runs}
    return {name: [dict(row) for row in rows] for name, rows in found.items()}
