"""Mail: written in the transaction of what it tells of, delivered by a job, looked after by admins.

A mail's Message-ID is made with its row and never changes: whoever gets it twice, because a process
died between sending and saying so, can tell. A mail that cannot be delivered ends as `failed` with
the reason; one that meets no server at all waits for it, however long that takes.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

from pydantic import BaseModel

from itdesk.config import Settings
from itdesk.desk.contract import reason as told
from itdesk.desk.jobs import Job
from itdesk.desk.letters import Letters, one_line
from itdesk.errors import Conflict, DeskError, NotFound, Unavailable
from itdesk.hookspecs import GiveUp, JobType, Mailer, Outgoing, RetryLater, Schedule
from itdesk.model import Caller, Email, Event, MailKind, MailStatus, Role, new_id
from itdesk.runtime.log import get_logger, redacted
from itdesk.runtime.metrics import Metrics
from itdesk.store import emails
from itdesk.store.db import Database, Transaction
from itdesk.store.emails import Begun, NewEmail
from itdesk.store.paging import Page, Window

DELIVER: Final = "mail.deliver"
# Two conversations with a server that uses up its deadlines.
DELIVERY_SECONDS: Final = 180.0
LONGEST_PAUSE: Final = 3600.0
OUTAGE_SECONDS: Final = 30.0
SWEEP: Final = 500

log = get_logger("mail")


class _Which(BaseModel):
    """What a delivery's job is told."""

    email_id: UUID


class Mail:
    """The desk's outgoing mail."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        metrics: Metrics,
        *,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.letters = Letters(settings.mail.templates_dir)
        self.mailer: Mailer | None = None
        self._db = db
        self._settings = settings
        self._dice = dice
        self._domain = settings.server.link_base.partition("://")[2].partition("/")[0]
        self._domain = self._domain.rpartition(":")[0] or self._domain
        self._ended = metrics.counter(
            "itdesk_mail_finished_total", "Mails that were settled: sent or failed.", ["outcome"]
        )
        self._again = metrics.counter(
            "itdesk_mail_retries_total", "Attempts at a mail that are made again later."
        )
        self._queued = metrics.gauge("itdesk_mail_queued", "Mails that are owed.")
        self._oldest = metrics.gauge(
            "itdesk_mail_oldest_seconds", "How long the oldest mail that is owed has been due."
        )

    @property
    def on(self) -> bool:
        """Return whether a plugin is there to send mail."""
        return self._settings.mail.plugin is not None

    @property
    def desk_name(self) -> str:
        """Return what the desk calls itself in mails."""
        return self._settings.mail.desk_name

    def link(self, path: str, **query: str) -> str:
        """Return an address to put into a mail: a path of the frontend, or of this daemon."""
        tail = f"?{urlencode(query)}" if query else ""
        return f"{self._settings.server.link_base}/{path.lstrip('/')}{tail}"

    # --- writing ---------------------------------------------------------------------------

    async def queue(
        self,
        tx: Transaction,
        template: str,
        to: str,
        values: Mapping[str, object],
        *,
        kind: MailKind,
        event_id: UUID | None = None,
    ) -> UUID:
        """Write a mail and queue its delivery, both with the transaction; return the mail's id.

        `desk`, the desk's name, is a value by itself; `hours` is for how long the mail is of use.
        While no plugin sends mail it is `skipped`.
        """
        letter = self.letters.write(template, {"desk": self.desk_name, **values})
        hours = values.get("hours")
        mail = self.new(
            to,
            letter.subject,
            letter.text,
            html=letter.html,
            kind=kind,
            event_id=event_id,
            hours=float(hours) if isinstance(hours, int | float) else None,
        )
        await self.post(tx, [mail])
        return mail.id

    def new(self, to: str, subject: str, text: str, *, kind: MailKind, **more: object) -> NewEmail:
        """Return a mail to be, with the Message-ID that it keeps."""
        id = new_id()
        status = MailStatus.QUEUED if self.on else MailStatus.SKIPPED
        fields: dict[str, object] = {
            "id": id,
            "to_address": one_line(to),
            "subject": subject,
            "text": text,
            "html": None,
            "kind": kind,
            "status": status,
            "message_id": f"<{id}@{self._domain}>",
            **more,
        }
        if kind.secret and not self.on:
            fields |= {"text": "", "html": None}
        return NewEmail(**fields)  # type: ignore[arg-type]

    async def post(self, tx: Transaction, mails: list[NewEmail]) -> int:
        """Write mails and queue the delivery of those that nobody has yet; return how many."""
        written = await emails.add(tx.conn, mails) if mails else set()
        for mail in mails:
            if mail.id in written and mail.status is MailStatus.QUEUED:
                self._enqueue(tx, mail.id, seconds=mail.seconds, event_id=mail.event_id)
        return len(written)

    @staticmethod
    def _enqueue(tx: Transaction, id: UUID, **how: object) -> None:
        tx.enqueue(DELIVER, {"email_id": str(id)}, dedupe=f"mail:{id}", **how)  # type: ignore[arg-type]

    # --- delivering ------------------------------------------------------------------------

    def job_type(self) -> JobType:
        """Return the kind of job that delivers a mail: apart from all others, several at a time."""
        return JobType(
            name=DELIVER,
            handle=self._deliver,
            concurrency=self._settings.mail.concurrency,
            attempts=self._settings.mail.max_attempts,
            timeout_seconds=DELIVERY_SECONDS,
        )

    def schedule(self) -> Schedule:
        """Return what looks for mail that waits while no job is there to deliver it."""
        seconds = self._settings.scheduler.email_seconds
        return Schedule(name="mail.sweep", seconds=seconds, run=self._sweep)

    async def _deliver(self, job: Job) -> None:
        """Send one mail and say so; whether it was sent after all, its Message-ID tells."""
        which = job.read(_Which).email_id
        async with self._db.connection() as conn:
            mail = await emails.begin(conn, which)
        if mail is None:
            return
        if mail.over:
            await self._failed(job, mail, "the link in it was over before it could be sent")
            return
        try:
            await self._hand_over(job, mail)
        except GiveUp as exc:
            await self._failed(job, mail, str(exc))
        except Unavailable as exc:
            raise await self._later(mail, exc.message, OUTAGE_SECONDS, counted=False) from exc
        except RetryLater as exc:
            pause = max(exc.seconds, self._pause(job.attempt))
            await self._once_more(job, mail, exc.reason, pause, counted=exc.counted)
        except (DeskError, OSError) as exc:
            await self._once_more(job, mail, told(exc), self._pause(job.attempt))
        else:
            async with job.transaction() as tx:
                await emails.mark_sent(tx.conn, mail.id, blank=mail.kind.secret)
            self._ended.labels("sent").inc()
            log.info("mail sent", email=mail.id, kind=mail.kind, attempt=job.attempt)

    async def _hand_over(self, job: Job, mail: Begun) -> None:
        if self.mailer is None:
            raise Unavailable(
                f"the plugin {self._settings.mail.plugin} that sends mail is not there"
                if self.on
                else "no plugin sends mail: set SMTP_HOST"
            )
        async with job.sending():
            await self.mailer.deliver(self._outgoing(mail))

    def _outgoing(self, mail: Begun) -> Outgoing:
        about = mail.ticket_id
        return Outgoing(
            id=mail.id,
            message_id=mail.message_id,
            to_address=mail.to_address,
            subject=mail.subject,
            text=mail.text,
            html=mail.html,
            thread=None if about is None else f"<ticket.{about}@{self._domain}>",
            created_at=mail.created_at,
        )

    def _pause(self, attempt: int) -> float:
        longest = min(self._settings.mail.retry_seconds * 2.0 ** (attempt - 1), LONGEST_PAUSE)
        return longest * (0.5 + self._dice() / 2)

    async def _once_more(
        self, job: Job, mail: Begun, why: str, seconds: float, *, counted: bool = True
    ) -> None:
        if counted and job.attempt >= self._settings.mail.max_attempts:
            await self._failed(job, mail, f"gave up after {job.attempt} attempts: {why}")
            return
        raise await self._later(mail, why, seconds, counted=counted)

    async def _later(self, mail: Begun, why: str, seconds: float, *, counted: bool) -> RetryLater:
        why = _reason(why)
        async with self._db.connection() as conn:
            await emails.mark_later(conn, mail.id, seconds=seconds, reason=why, counted=counted)
        self._again.inc()
        return RetryLater(seconds, why, counted=counted)

    async def _failed(self, job: Job, mail: Begun, why: str) -> None:
        """End a mail that cannot be delivered; its job has done what there was to do."""
        async with job.transaction() as tx:
            await emails.mark_failed(tx.conn, mail.id, reason=_reason(why))
        self._ended.labels("failed").inc()
        log.warning("mail failed", email=mail.id, kind=mail.kind, reason=_reason(why))

    async def _sweep(self, job: Job) -> None:
        """Fail mails whose jobs were given up, and give a job to those that have none."""
        async with job.transaction() as tx:
            failed = await emails.fail_abandoned(tx.conn, SWEEP, type="mail")
            stranded = await emails.stranded(tx.conn, SWEEP, type="mail")
            for id in stranded:
                self._enqueue(tx, id)
        if failed or stranded:
            self._ended.labels("failed").inc(failed)
            log.warning("mail without a job", failed=failed, queued_again=len(stranded))

    # --- looking after ---------------------------------------------------------------------

    async def list(
        self, caller: Caller, window: Window, *, status: MailStatus | None, to: str | None
    ) -> Page[Email]:
        """Return one page of the mails, the newest first."""
        caller.require(Role.ADMIN, "look at mails")
        async with self._db.connection() as conn:
            page = await emails.list_page(conn, window, status=status, to=to)
            total = await emails.count(conn, status=status, to=to) if window.count else None
        return replace(page, total=total)

    async def retry(self, caller: Caller, ref: str | UUID) -> Email:
        """Let a mail that failed or was skipped be sent after all, as soon as a plugin can."""
        caller.require(Role.ADMIN, "retry mails")
        async with self._db.transaction() as tx:
            before = await emails.get(tx.conn, _id(ref), lock=True)
            if before.status not in (MailStatus.FAILED, MailStatus.SKIPPED):
                raise Conflict(
                    f"Only a mail that failed or was skipped can be retried; this one is"
                    f" {before.status}.",
                    code="E_EMAIL_STATE",
                    details={"status": before.status},
                )
            after = await emails.requeue(tx.conn, before.id)
            if after is None:
                raise Conflict(
                    "What this mail said is forgotten, because its link is over: let the person"
                    " ask for a new one.",
                    code="E_EMAIL_FORGOTTEN",
                )
            self._enqueue(tx, after.id)
            about = {"email_id": str(after.id), "last_error": before.last_error}
            tx.record(Event.by(caller, "email.retried", data=about))
        return after

    async def send_test(self, caller: Caller, to: str) -> str:
        """Send a mail at once, past the queue, and return its Message-ID; a DeskError says why not.

        It is not kept: what is tried is the way to the server and the address.
        """
        caller.require(Role.ADMIN, "send test mails")
        mailer = self._present()
        letter = self.letters.write("trial", {"desk": self.desk_name, "email": to})
        mail = self.new(to, letter.subject, letter.text, html=letter.html,
                        kind=MailKind.NOTIFICATION)  # fmt: skip
        async with self._db.connection() as conn:
            now = await emails.now(conn)
        begun = Begun(
            mail.id, mail.message_id, mail.to_address, mail.subject, mail.text, mail.html,
            mail.kind, None, now, False,
        )  # fmt: skip
        try:
            await mailer.deliver(self._outgoing(begun))
        except (GiveUp, RetryLater) as exc:
            why = exc.reason if isinstance(exc, RetryLater) else str(exc)
            raise Unavailable(f"The mail was not taken: {_reason(why)}") from exc
        return mail.message_id

    async def check(self) -> str:
        """Try whether mail could be sent; a DeskError says what to mend."""
        return await self._present().check()

    def _present(self) -> Mailer:
        if self.mailer is None:
            raise Unavailable(
                f"The plugin {self._settings.mail.plugin} that sends mail did not start; the log"
                " says why."
                if self.on
                else "No plugin sends mail: set SMTP_HOST."
            )
        return self.mailer

    async def waiting(self) -> emails.Waiting:
        """Return how much mail is owed, and bring the metrics up to date."""
        async with self._db.connection() as conn:
            owed = await emails.waiting(conn)
        self._queued.set(owed.count)
        self._oldest.set(owed.oldest_seconds)
        return owed


def _reason(text: str) -> str:
    return one_line(redacted(text), 300)


def _id(ref: str | UUID) -> UUID:
    try:
        return ref if isinstance(ref, UUID) else UUID(ref)
    except ValueError:
        raise NotFound.of("email") from None
