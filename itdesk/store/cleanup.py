"""What is over and only takes up room: each statement deletes one batch and returns its size.

Whether something is over, the database's clock decides. The batches keep each statement far from
its deadline, however long nobody cleaned up.
"""

from typing import Any
from uuid import UUID


async def delete_expired_sessions(conn: Any, limit: int) -> int:
    """Delete tokens of sessions whose time is over."""
    query = """
        DELETE FROM refresh_tokens WHERE id IN (
            SELECT id FROM refresh_tokens WHERE expires_at < now() ORDER BY expires_at LIMIT $1
        )
    """
    return _count(await conn.execute(query, limit))


async def delete_expired_verifications(conn: Any, limit: int) -> int:
    """Delete tokens that would verify an address, had they been used in time."""
    query = """
        DELETE FROM verification_tokens WHERE token_hash IN (
            SELECT token_hash FROM verification_tokens
            WHERE expires_at < now() ORDER BY expires_at LIMIT $1
        )
    """
    return _count(await conn.execute(query, limit))


async def delete_expired_resets(conn: Any, limit: int) -> int:
    """Delete tokens that would reset a password, had they been used in time."""
    query = """
        DELETE FROM password_reset_tokens WHERE token_hash IN (
            SELECT token_hash FROM password_reset_tokens
            WHERE expires_at < now() ORDER BY expires_at LIMIT $1
        )
    """
    return _count(await conn.execute(query, limit))


async def delete_expired_challenges(conn: Any, limit: int) -> int:
    """Delete sign-ins that waited for a second step in vain."""
    query = """
        DELETE FROM login_challenges WHERE token_hash IN (
            SELECT token_hash FROM login_challenges
            WHERE expires_at < now() ORDER BY expires_at LIMIT $1
        )
    """
    return _count(await conn.execute(query, limit))


async def delete_expired_sign_ins(conn: Any, limit: int) -> int:
    """Delete sign-ins by accounts elsewhere that were begun and never finished."""
    query = """
        DELETE FROM oauth_states WHERE state_hash IN (
            SELECT state_hash FROM oauth_states
            WHERE expires_at < now() ORDER BY expires_at LIMIT $1
        )
    """
    return _count(await conn.execute(query, limit))


async def delete_expired_api_tokens(conn: Any, limit: int, *, days: int) -> int:
    """Delete API tokens that expired so many days ago; until then their owner sees why."""
    query = """
        DELETE FROM api_tokens WHERE id IN (
            SELECT id FROM api_tokens
            WHERE expires_at < now() - make_interval(days => $2) ORDER BY expires_at LIMIT $1
        )
    """
    return _count(await conn.execute(query, limit, days))


async def delete_old_answers(conn: Any, limit: int, *, hours: int) -> int:
    """Delete answers that were kept for requests repeated within so many hours."""
    query = """
        DELETE FROM idempotency_keys WHERE (principal, route, key) IN (
            SELECT principal, route, key FROM idempotency_keys
            WHERE created_at < now() - make_interval(hours => $2) ORDER BY created_at LIMIT $1
        )
    """
    return _count(await conn.execute(query, limit, hours))


async def delete_expired_counts(conn: Any, limit: int) -> int:
    """Delete what was counted in periods that no limit looks at any more."""
    query = """
        DELETE FROM rate_counts WHERE subject IN (
            SELECT subject FROM rate_counts WHERE expires_at < now() ORDER BY expires_at LIMIT $1
            FOR UPDATE SKIP LOCKED
        )
    """
    return _count(await conn.execute(query, limit))


async def delete_expired_guesses(conn: Any, limit: int) -> int:
    """Delete wrong guesses that are long over."""
    query = """
        DELETE FROM password_guesses WHERE subject IN (
            SELECT subject FROM password_guesses WHERE expires_at < now()
            ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
        )
    """
    return _count(await conn.execute(query, limit))


async def delete_never_uploaded(conn: Any, limit: int, *, days: int) -> int:
    """Delete places kept for files that never came, known as missing for so many days.

    There are no bytes to delete, and no reader ever saw them.
    """
    query = """
        DELETE FROM attachments WHERE id IN (
            SELECT id FROM attachments
            WHERE scanned_status = 'FAILED' AND scan_reason = 'missing' AND uploaded_at IS NULL
              AND scanned_at < now() - make_interval(days => $2)
            LIMIT $1 FOR UPDATE SKIP LOCKED
        )
    """
    return _count(await conn.execute(query, limit, days))


async def forget_mail_bodies(conn: Any, limit: int, *, days: int) -> int:
    """Forget what mails said that were settled and are older than so many days."""
    query = """
        UPDATE emails SET body_text = '', body_html = NULL WHERE id IN (
            SELECT id FROM emails
            WHERE status <> 'queued' AND (body_text <> '' OR body_html IS NOT NULL)
              AND created_at < now() - make_interval(days => $2)
            ORDER BY created_at LIMIT $1
        )
    """
    return _count(await conn.execute(query, limit, days))


async def delete_audit(conn: Any, limit: int, *, days: int) -> int:
    """Delete numbered events about no ticket that are older than so many days."""
    query = """
        DELETE FROM events WHERE id IN (
            SELECT id FROM events
            WHERE ticket_id IS NULL AND seq IS NOT NULL
              AND created_at < now() - make_interval(days => $2)
            ORDER BY created_at LIMIT $1
        )
    """
    await conn.execute("SET LOCAL itdesk.erase = 'on'")
    deleted = _count(await conn.execute(query, limit, days))
    await conn.execute("SET LOCAL itdesk.erase = 'off'")
    return deleted


async def delete_undecided_suggestions(conn: Any, limit: int, *, days: int) -> int:
    """Delete what was suggested so many days ago and nobody has to decide any more."""
    query = """
        DELETE FROM suggestions WHERE id IN (
            SELECT s.id FROM suggestions s JOIN tickets t ON t.id = s.ticket_id
            WHERE s.decided_at IS NULL AND s.created_at < now() - make_interval(days => $2)
              AND (s.state = 'superseded' OR t.status = 'closed')
            ORDER BY s.created_at LIMIT $1 FOR UPDATE OF s SKIP LOCKED
        )
    """
    return _count(await conn.execute(query, limit, days))


async def files_of_closed(conn: Any, limit: int, *, days: int) -> list[UUID]:
    """Return files of tickets that have been closed for so many days."""
    query = """
        SELECT f.id FROM tickets t JOIN attachments f ON f.ticket_id = t.id
        WHERE t.status = 'closed' AND t.closed_at < now() - make_interval(days => $2)
        ORDER BY f.id LIMIT $1
    """
    return [row["id"] for row in await conn.fetch(query, limit, days)]


def _count(tag: str) -> int:
    return int(tag.rpartition(" ")[2])
