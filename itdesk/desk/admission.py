"""Who is asking: the person behind an access token or an API token, with the role they have now.

The database is asked once in `session_refresh_seconds` and believed in between, so that a
revocation is immediate here and seconds late elsewhere.
"""

from datetime import UTC, datetime
from uuid import UUID

from itdesk.config import Auth
from itdesk.desk.opaque import API_TOKEN
from itdesk.desk.remembered import Remembered
from itdesk.desk.tokens import Tokens, UnknownKey
from itdesk.errors import ExpiredToken, InvalidToken
from itdesk.model import Caller
from itdesk.runtime.clock import Clock
from itdesk.store import sessions
from itdesk.store.db import Database, Transaction


class Admission:
    """Tells who is asking."""

    def __init__(
        self, db: Database, tokens: Tokens, settings: Auth, clock: Clock, *, remembered: int
    ) -> None:
        self._db = db
        self._tokens = tokens
        self._settings = settings
        self._clock = clock
        seconds = settings.session_refresh_seconds
        self._sessions: Remembered[UUID, sessions.Session] = Remembered(
            self._session_of, clock, seconds=seconds, size=remembered
        )
        # Apart, so that a flood of invented tokens pushes no session out.
        self._api_tokens: Remembered[bytes, sessions.Session] = Remembered(
            self._token_of, clock, seconds=seconds, size=remembered
        )

    async def admit(self, token: str) -> tuple[Caller, datetime]:
        """Return who is asking and until when that holds; else Unauthenticated."""
        if token.startswith(API_TOKEN.prefix):
            session = await self._by_api_token(token)
            until = session.expires_at
        else:
            session, until = await self._by_access_token(token)
        caller = Caller(
            user_id=session.user_id,
            name=session.name,
            role=session.role,
            email=session.email,
            session_id=session.id,
            grant=session.grant,
            must_enrol=self.must_enrol(session),
        )
        return caller, until

    def must_enrol(self, session: sessions.Session) -> bool:
        """Return whether the person's role asks for a second factor that is not there yet."""
        required = self._settings.totp_required_roles
        return session.owner_role in required and not session.has_factor

    def forget_person(self, tx: Transaction, user_id: UUID) -> None:
        """Look at a person's sessions and tokens anew once the transaction is committed."""

        def is_theirs(known: sessions.Session) -> bool:
            return known.user_id == user_id

        tx.after_commit(lambda: self._sessions.forget_where(is_theirs))
        tx.after_commit(lambda: self._api_tokens.forget_where(is_theirs))

    def forget_session(self, tx: Transaction, session_id: UUID) -> None:
        """Look at a session anew once the transaction is committed."""
        tx.after_commit(lambda: self._sessions.forget(session_id))

    def forget_token(self, tx: Transaction, digest: bytes) -> None:
        """Look at an API token anew once the transaction is committed."""
        tx.after_commit(lambda: self._api_tokens.forget(digest))

    async def _by_access_token(self, token: str) -> tuple[sessions.Session, datetime]:
        try:
            claims = self._tokens.verify(token)
        except UnknownKey:
            # Another process may have rotated the keys, and signed with the new one already.
            if not await self._tokens.reload():
                raise
            claims = self._tokens.verify(token)
        session = await self._sessions.get(claims.sid)
        if session is None or session.user_id != claims.sub:
            raise InvalidToken("The session has ended. Sign in again.")
        if self._clock.now() >= session.expires_at:
            raise ExpiredToken("The session has ended. Sign in again.")
        return session, datetime.fromtimestamp(claims.exp, UTC)

    async def _by_api_token(self, token: str) -> sessions.Session:
        session = await self._api_tokens.get(API_TOKEN.digest(token))
        if session is None:
            raise InvalidToken("The API token is not valid: it was revoked, or never was one.")
        if self._clock.now() >= session.expires_at:
            raise ExpiredToken("The API token has expired. Make a new one.")
        return session

    async def _session_of(self, session_id: UUID) -> sessions.Session | None:
        async with self._db.connection() as conn:
            return await sessions.live(conn, session_id)

    async def _token_of(self, digest: bytes) -> sessions.Session | None:
        async with self._db.connection() as conn:
            return await sessions.live_token(conn, digest)
