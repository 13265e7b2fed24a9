"""The assembly of the desk: the one place that builds all its parts, in order, on one page."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from itdesk import archives
from itdesk.config import Settings
from itdesk.desk import Desk, keyfile
from itdesk.desk.accounts import Accounts
from itdesk.desk.api_tokens import ApiTokens
from itdesk.desk.assist import Assist
from itdesk.desk.attachments import Attachments, Rules
from itdesk.desk.backups import Backups
from itdesk.desk.chat import Chat
from itdesk.desk.engines import Engines
from itdesk.desk.enrichment import Enrichment
from itdesk.desk.factors import Factors
from itdesk.desk.guesses import Guesses
from itdesk.desk.identities import Identities
from itdesk.desk.inventory import Inventory
from itdesk.desk.jobs import Jobs
from itdesk.desk.journal import Journal
from itdesk.desk.keys import Keys
from itdesk.desk.knowledge import Knowledge
from itdesk.desk.limits import RateLimits
from itdesk.desk.mail import Mail
from itdesk.desk.meanings import Meanings
from itdesk.desk.mirror import Mirror
from itdesk.desk.notices import Notices
from itdesk.desk.passwords import Passwords
from itdesk.desk.people import People
from itdesk.desk.plugins import Plugins
from itdesk.desk.projects import Projects
from itdesk.desk.proofs import Proofs
from itdesk.desk.reads import Reads
from itdesk.desk.recommendations import Recommendations
from itdesk.desk.recovery import Recovery
from itdesk.desk.reports import Reports
from itdesk.desk.rescans import Rescans
from itdesk.desk.retention import Retention
from itdesk.desk.rulebook import opened_rules
from itdesk.desk.scans import Scans
from itdesk.desk.schedules import Schedules, own_schedules
from itdesk.desk.search import Search
from itdesk.desk.second_factor import SecondFactors
from itdesk.desk.sessions import Sessions
from itdesk.desk.signups import Signups
from itdesk.desk.similar import Similarity
from itdesk.desk.spool import Spool
from itdesk.desk.stats import Statistics
from itdesk.desk.suggestions import Suggestions
from itdesk.desk.switchboard import Switchboard
from itdesk.desk.switches import Switches, storage_plugin, told
from itdesk.desk.tickets import Tickets
from itdesk.desk.tokens import Tokens
from itdesk.desk.triage import Triage
from itdesk.desk.urlsigner import UrlSigner
from itdesk.desk.verification import Verification
from itdesk.desk.views import Views
from itdesk.desk.wordlists import Wordlists
from itdesk.desk.writing import Writing
from itdesk.errors import ConfigError
from itdesk.hookspecs import Storage
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics
from itdesk.runtime.tracing import Tracing
from itdesk.store.listing import Listing
from itdesk.store.opening import open_database

log = get_logger("assist")


@asynccontextmanager
async def open_desk(settings: Settings, url: str) -> AsyncIterator[Desk]:
    """Build the desk on a migrated database, with its plugins entered; no actor runs yet."""
    clock, metrics, tracing = Clock(), Metrics(), Tracing()
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(open_database(settings, url))
        secret = settings.auth.jwt_secret
        keys, key_file = keyfile.configured(
            algorithm=settings.auth.jwt_algorithm,
            secret=secret.get_secret_value() if secret else None,
            path=settings.jwt_key_path,
        )
        passwords = Passwords(settings.auth.bcrypt_cost, minimum=settings.auth.password_min_length)
        stack.callback(passwords.close)
        switches = Switches(db, settings)
        begun = await switches.read()
        plugins = Plugins.load(
            settings.enabled_plugins(),
            directories=settings.plugin_host.directories,
            metrics=metrics,
            safe_mode=settings.plugin_host.safe_mode,
            off={name: told(one) for name, one in begun.items() if not one.enabled},
        )
        reads = Reads(url, settings)
        stack.push_async_callback(reads.close)
        pages = Listing(clock)
        search = Search(reads, pages, clock)
        tokens = Tokens(keys, clock, file=key_file)
        jobs = Jobs(db, settings.jobs, clock, metrics, tracing)
        mail = Mail(db, settings, metrics)
        proofs = Proofs(mail, settings, keys.derive("verification-codes"))
        factors = Factors(keys.derive("second-factors"), clock)
        guesses = Guesses(db, settings.limits)
        sessions = Sessions(db, tokens, passwords, guesses, settings.auth, clock, factors=factors)

        async def forget_files(files: Sequence[tuple[str, str | None]]) -> None:
            await desk.attachments.forget(files)

        desk = Desk(
            settings=settings,
            clock=clock,
            metrics=metrics,
            tracing=tracing,
            db=db,
            plugins=plugins,
            tokens=tokens,
            limits=RateLimits(db, settings.limits, clock, metrics),
            guesses=guesses,
            sessions=sessions,
            accounts=Accounts(db, passwords, guesses, sessions, proofs),
            signups=Signups(db, passwords, sessions, proofs, settings.auth, clock),
            verification=Verification(db, sessions, proofs, clock),
            recovery=Recovery(db, passwords, guesses, sessions, proofs, clock),
            api_tokens=ApiTokens(db, sessions, settings.auth, clock),
            second_factors=SecondFactors(db, factors, sessions, passwords, settings.auth),
            projects=Projects(db),
            tickets=Tickets(
                db,
                plugins,
                search,
                pages,
                default_project=settings.tickets.default_project,
                forget_files=forget_files,
            ),
            journal=Journal(db),
            mirror=Mirror(db, clock),
            jobs=jobs,
            mail=mail,
            notices=Notices(db, mail, settings),
            schedules=Schedules(db, jobs),
            stats=Statistics(db),
            reads=reads,
            search=search,
            views=Views(db, most=settings.tickets.views_per_person),
            reports=Reports(reads),
            recommendations=Recommendations(db, reads),
            upload_dir=settings.storage.local.upload_dir,
        )
        desk.suggestions = Suggestions(db, reads, desk.tickets, clock, metrics)
        await plugins.metrics(metrics)
        await stack.enter_async_context(plugins.lifespan(desk))
        await _open_files(desk, keys)
        stack.callback(desk.scans.close)
        if settings.mail.plugin is not None:
            mail.mailer = (await plugins.mailers(desk)).get(settings.mail.plugin)
        await _open_assist(desk)
        await stack.enter_async_context(opened_rules(desk))
        providers = await plugins.identity_providers(desk)
        desk.identities = Identities(db, desk.accounts, sessions, providers, settings)
        await _open_work(desk)
        desk.switchboard = Switchboard(desk, switches, begun)
        yield desk


async def _open_files(desk: Desk, keys: Keys) -> None:
    """Give the desk its storage and its virus scanners, which plugins provide."""
    settings = desk.settings
    desk.storage = storage = await _chosen_storage(desk)
    desk.people = People(desk.db, storage, desk.sessions)
    desk.backups = Backups(desk.db, storage, settings, desk.clock, desk.metrics)
    engines = await desk.plugins.scan_engines(desk)
    spool = settings.state_dir / "spool"
    try:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"{spool} cannot be made: {exc.strerror}. Name another --state-dir."
        ) from exc
    desk.attachments = Attachments(
        desk.db,
        storage,
        UrlSigner(keys.derive("storage-urls"), desk.clock),
        Rules(
            max_file_size=settings.storage.max_file_size,
            allowed_types=settings.storage.allowed_types,
            upload_seconds=settings.storage.presign_expires_seconds,
            download_seconds=settings.storage.download_expires_seconds,
        ),
    )
    desk.inventory = Inventory(desk.db, storage, settings, desk.metrics)
    panel = Engines(engines, desk.clock, retry_seconds=settings.scanner.retry_seconds)
    desk.scans = Scans(
        desk.db,
        storage,
        panel,
        settings=settings.scanner,
        spool=Spool(spool),
        # What only an engine can unpack passes the walk when there is such an engine.
        limits=archives.Limits(opaque=any(engine.unpacks for engine in engines.values())),
        allowed_types=settings.storage.allowed_types,
        clock=desk.clock,
        metrics=desk.metrics,
    )
    desk.rescans = Rescans(
        desk.db,
        storage,
        desk.scans,
        panel,
        settings=settings.scanner,
        spool=Spool(spool),
        metrics=desk.metrics,
    )


async def _open_assist(desk: Desk) -> None:
    """Give the desk what suggests and answers: word lists, knowledge, and a plugin's model."""
    settings, clock = desk.settings, desk.clock
    words = Wordlists(settings.ai.words_dir)
    desk.assist = Assist(settings, clock, desk.metrics)
    if settings.ai.plugin is not None:
        desk.assist.model = (await desk.plugins.models(desk)).get(settings.ai.plugin)
        if desk.assist.model is None:
            log.warning("rules answer: there is no language model", plugin=settings.ai.plugin)
    desk.knowledge = Knowledge(
        desk.reads, clock, partial(desk.plugins.knowledge, desk), most=settings.ai.top_matches
    )
    desk.triage = Triage(desk.db, desk.assist, desk.knowledge, words, clock)
    desk.chat = Chat(desk.assist, desk.knowledge, words, desk.triage, desk.tickets, clock)
    _open_suggestions(desk, words)


def _open_suggestions(desk: Desk, words: Wordlists) -> None:
    """Give the desk what suggests, writes and compares, and the work in the background for it."""
    db, ai, assist = desk.db, desk.settings.ai, desk.assist
    meanings = Meanings(db, assist, seconds=ai.embedding_seconds)
    desk.meanings = meanings
    desk.similar = Similarity(db, desk.reads, meanings)
    desk.writing = Writing(db, assist, desk.knowledge, words, desk.clock)
    enrichment = Enrichment(db, desk.tickets, desk.similar, desk.triage, words, desk.settings)
    desk.jobs.register(enrichment.job_type(modelled=lambda: assist.model is not None))
    desk.schedules.register(meanings.schedule())


async def _open_work(desk: Desk) -> None:
    """Tell the desk what must happen after a change, and what periodically."""
    desk.schedules.register(
        *own_schedules(desk.db, desk.stats, desk.inventory, desk.recommendations, desk.settings)
    )
    retention = Retention(desk.db, desk.attachments, desk.settings)
    desk.schedules.register(desk.backups.schedule(), retention.schedule())
    desk.jobs.register(*desk.rescans.jobs())
    desk.jobs.register(*desk.verification.jobs(), *desk.recovery.jobs())
    desk.schedules.register(desk.mail.schedule())
    desk.jobs.register(desk.mail.job_type(), desk.notices.job_type())
    desk.jobs.gauges += [desk.mail.waiting, desk.backups.measure, desk.suggestions.measure]
    desk.trackers = await desk.plugins.trackers(desk)
    for kinds in (await desk.plugins.jobs(desk)).values():
        desk.jobs.register(*kinds)
    for schedules in (await desk.plugins.schedules(desk)).values():
        desk.schedules.register(*schedules)
    # From here on, whoever records an event queues what follows from it: commands as well.
    desk.db.jobs_of = lambda new: [
        *desk.jobs.of_events(new),
        *desk.automation.of_events(new),
    ]


async def _chosen_storage(desk: Desk) -> Storage:
    wanted = storage_plugin(desk.settings)
    storages = await desk.plugins.storages(desk)
    if wanted not in storages:
        health = (await desk.plugins.health()).get(wanted)
        why = f": {health.reason}" if health and health.reason else ""
        raise ConfigError(
            f"storage.backend: needs the plugin {wanted}, which is not there or did not start{why}"
        )
    return storages[wanted]
