"""Sample data for a first look: never for production, and the same however often it is sown."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from itdesk.desk import Desk
from itdesk.desk.passwords import Passwords
from itdesk.desk.tickets import NewTicket
from itdesk.errors import NotFound
from itdesk.model import Caller, Category, Priority, Role, Source, Status, User, new_id
from itdesk.store import projects, recommendations, users

DEMO_PASSWORD = "password"  # noqa: S105 - known to everybody, and refused in production
DEMO_PROJECT = "TW"
FIRST_DEMO_NUMBER = 1001

PEOPLE: Sequence[tuple[str, str, Role, str]] = (
    ("admin@company.com", "Casey Admin", Role.ADMIN, "IT"),
    ("admin@example.com", "Alex Admin", Role.ADMIN, "IT"),
    ("maintainer@example.com", "Morgan Maintainer", Role.AGENT, "IT"),
    ("reporter@example.com", "Robin Reporter", Role.USER, "Sales"),
    ("agent.network@example.com", "Noor Network", Role.AGENT, "IT"),
    ("agent.desktop@example.com", "Dana Desktop", Role.AGENT, "IT"),
    ("manager@example.com", "Mika Manager", Role.MANAGER, "IT"),
)

_OPEN, _TRIAGED, _DOING = Status.OPEN, Status.TRIAGED, Status.IN_PROGRESS
_BLOCKED, _CLOSED = Status.BLOCKED, Status.CLOSED
_LOW, _MEDIUM, _HIGH, _CRITICAL = Priority

# Title, category, priority, and the status that the ticket is moved to.
TICKETS: Sequence[tuple[str, Category, Priority, Status]] = (
    ("VPN drops every ten minutes from home", Category.NETWORK, _HIGH, _DOING),
    ("Laptop does not charge in the dock", Category.HARDWARE, _MEDIUM, _OPEN),
    ("Request for access to the finance share", Category.SERVICE_REQUEST, _MEDIUM, _CLOSED),
    ("Outlook search finds nothing older than a week", Category.EMAIL, _MEDIUM, _TRIAGED),
    ("Phishing mail with an invoice went to all of Sales", Category.SECURITY, _CRITICAL, _DOING),
    ("Wi-Fi on the third floor is slow after lunch", Category.NETWORK, _MEDIUM, _OPEN),
    ("Print queue of the warehouse is stuck", Category.HARDWARE, _HIGH, _CLOSED),
    ("Nightly backup of the file server failed", Category.INFRASTRUCTURE, _CRITICAL, _DOING),
    ("Please install the new CAD viewer", Category.SERVICE_REQUEST, _LOW, _BLOCKED),
    ("Intranet shows error 502 in the mornings", Category.APPLICATION, _HIGH, _TRIAGED),
    ("Monitor flickers on the second screen", Category.HARDWARE, _LOW, _OPEN),
    ("New colleague starts on Monday: account and laptop", Category.SERVICE_REQUEST, _MEDIUM,
     _CLOSED),
    ("Password reset mail never arrives", Category.EMAIL, _HIGH, _OPEN),
    ("Database server is low on disk space", Category.INFRASTRUCTURE, _CRITICAL, _TRIAGED),
    ("Certificate of the customer portal expires this week", Category.SECURITY, _HIGH, _DOING),
    ("Time tracking loses entries on save", Category.APPLICATION, _HIGH, _BLOCKED),
    ("Shared mailbox is missing after the migration", Category.EMAIL, _MEDIUM, _CLOSED),
    ("Switch in room 2.14 reboots at random", Category.NETWORK, _HIGH, _OPEN),
    ("Recurring: projector in the board room loses signal", Category.PROBLEM, _MEDIUM, _TRIAGED),
    ("Badge reader at the back door is offline", Category.HARDWARE, _MEDIUM, _CLOSED),
    ("Request for a second monitor", Category.SERVICE_REQUEST, _LOW, _OPEN),
    ("ERP report takes ten minutes since the update", Category.APPLICATION, _HIGH, _DOING),
    ("Suspicious login from abroad on a service account", Category.SECURITY, _CRITICAL, _CLOSED),
    ("Guest Wi-Fi voucher printer is out of paper", Category.HARDWARE, _LOW, _CLOSED),
    ("Video calls break up in the new building", Category.NETWORK, _MEDIUM, _OPEN),
    ("Spell checker speaks the wrong language", Category.APPLICATION, _LOW, _CLOSED),
    ("Mail to one customer bounces with 550", Category.EMAIL, _MEDIUM, _DOING),
    ("Virtual machine host reports a failed power supply", Category.INFRASTRUCTURE, _HIGH, _OPEN),
    ("Recurring: accounts are locked out on Mondays", Category.PROBLEM, _HIGH, _TRIAGED),
    ("Please move our team folder to the new share", Category.SERVICE_REQUEST, _LOW, _BLOCKED),
)  # fmt: skip

# How a ticket gets where it shall be, along the lifecycle.
_WAYS: dict[Status, Sequence[Status]] = {
    _OPEN: (),
    _TRIAGED: (_TRIAGED,),
    _DOING: (_TRIAGED, _DOING),
    _BLOCKED: (_DOING, _BLOCKED),
    _CLOSED: (_DOING, _CLOSED),
}

_SAID = (
    "Thank you for the report. Could you tell me since when this happens?",
    "Since the update last Thursday, I believe.",
    "I have found the cause and am working on it.",
)

RECOMMENDATIONS: Sequence[recommendations.Row] = (
    ("pattern", "VPN and Wi-Fi reports come in the same hour",
     "Network tickets cluster after lunch; look at the uplink first.", ("TW-1001", "TW-1006"), 82,
     "high"),
    ("pattern", "Mondays bring lockouts",
     "Most account lockouts fall on Monday mornings; cached credentials are a usual cause.",
     ("TW-1029",), 76, "medium"),
    ("priority", "Raise the certificate ticket",
     "The customer portal goes dark when its certificate expires.", ("TW-1015",), 91, "high"),
    ("priority", "Disk space first",
     "A full database disk stops every application at once.", ("TW-1014",), 88, "high"),
    ("solution", "Clear the print spooler",
     "Restarting the spooler solved the last three stuck queues.", ("TW-1007",), 70, "low"),
    ("solution", "Rebuild the search index",
     "Mail search recovers after its index is rebuilt.", ("TW-1004",), 64, "low"),
    ("workflow", "Assign phishing reports at once",
     "Security tickets waited longest for their first action.", ("TW-1005", "TW-1023"), 79,
     "high"),
    ("workflow", "A checklist for new colleagues",
     "Onboarding requests miss the same three steps.", ("TW-1012",), 73, "medium"),
)  # fmt: skip


async def sow(desk: Desk) -> int:
    """Add what every desk may start with: the recommendations; return how many were new."""
    async with desk.db.transaction() as tx:
        return await recommendations.add_missing(tx.conn, RECOMMENDATIONS)


async def sow_demo(
    desk: Desk, passwords: Passwords, progress: Callable[[int, int], None] = lambda done, all: None
) -> dict[str, int]:
    """Add people, tickets in every status and comments; return how many of each were new."""
    hashed = await passwords.hash(DEMO_PASSWORD)
    people: dict[str, User] = {}
    new_people = 0
    for email, name, role, department in PEOPLE:
        people[email], is_new = await _person(desk, email, name, role, department, hashed)
        new_people += is_new
    async with desk.db.transaction() as tx:
        await projects.ensure(
            tx.conn, id=new_id(), key=DEMO_PROJECT, first_number=FIRST_DEMO_NUMBER
        )
    made = []
    async for number in _tickets(desk, people):
        made.append(number)
        progress(len(made), len(TICKETS))
    return {"people": new_people, "tickets": len(made), "recommendations": await sow(desk)}


async def _person(
    desk: Desk, email: str, name: str, role: Role, department: str, hashed: str
) -> tuple[User, bool]:
    try:
        return await desk.accounts.find(email), False
    except NotFound:
        pass
    async with desk.db.transaction() as tx:
        return await users.create(
            tx.conn,
            id=new_id(),
            email=email,
            name=name,
            role=role,
            department=department,
            password_hash=hashed,
            is_verified=True,
        ), True


async def _tickets(desk: Desk, people: dict[str, User]) -> AsyncIterator[int]:
    reporter = _acting(people["reporter@example.com"])
    agents = [_acting(person) for person in people.values() if person.role is Role.AGENT]
    for place, (title, category, priority, status) in enumerate(TICKETS):
        key = f"{DEMO_PROJECT}-{FIRST_DEMO_NUMBER + place}"
        try:
            await desk.tickets.get(agents[0], key)
            continue
        except NotFound:
            pass
        agent = agents[place % len(agents)]
        new = NewTicket(title, f"{title}. Please help.", priority, category, project=DEMO_PROJECT)
        ticket = await desk.tickets.create(reporter, new)
        if status is not _OPEN and agent.user_id is not None:
            await desk.tickets.update(agent, ticket.key, {"assignee_ids": [agent.user_id]})
        for step in _WAYS[status]:
            await desk.tickets.update(agent, ticket.key, {"status": step})
        for body, author in _conversation(place, reporter, agent):
            await desk.tickets.comment(author, ticket.key, body)
        yield ticket.number


def _conversation(place: int, reporter: Caller, agent: Caller) -> Iterator[tuple[str, Caller]]:
    """Every other of the first tickets was talked about: 17 comments in all."""
    if place <= 10 and place % 2 == 0:
        said = _SAID if place < 10 else _SAID[:2]
        yield from zip(said, (agent, reporter, agent), strict=False)


def _acting(person: User) -> Caller:
    return Caller(person.id, person.name, person.role, Source.CLI, person.email)
