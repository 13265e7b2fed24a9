"""What a ticket looks like when it goes out: a row of the database with JSON's spelling."""

from collections.abc import Mapping
from typing import Any

TicketRow = Mapping[str, Any]

_TIME = (
    """replace(to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z')"""
)

# The fields of `model.Ticket`, in its order. All of them but the assignees and the project's key
# are columns of the ticket; it is written with every change of its assignees as well, and a project
# that has tickets keeps its key.
ROW = f"""
    t.id::text AS id, t.number, t.key, t.project_id::text AS project_id, p.key AS project, t.title,
    t.description, t.status, t.priority, t.category, t.department, t.tags,
    t.reporter_id::text AS reporter_id, t.reporter_name, a.ids[1] AS assignee_id,
    a.ids AS assignee_ids, t.resolution, t.predicted_priority, t.predicted_category,
    CASE WHEN t.external_source IS NOT NULL THEN jsonb_build_object(
        'source', t.external_source, 'id', t.external_id, 'assignee', t.external_assignee,
        'updated_at', {_TIME.format("t.external_updated_at")},
        'last_synced_at', {_TIME.format("t.last_synced_at")}) END AS external,
    t.first_action_at, t.closed_at, t.version, t.created_at, t.updated_at
"""  # noqa: S608 - literals of this module
BESIDE = """
    JOIN projects p ON p.id = t.project_id CROSS JOIN LATERAL (
        SELECT ARRAY(SELECT user_id::text FROM ticket_assignees
                     WHERE ticket_id = t.id ORDER BY position) AS ids
        -- Keeps it from being looked up once for each column that uses it.
        OFFSET 0) AS a
"""


def without(row: Any, name: str) -> TicketRow:
    """Return a row that was read, without what only the statement needed."""
    shown = dict(row)
    del shown[name]
    return shown
