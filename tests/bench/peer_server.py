"""The peer: a ticket API on FastAPI, SQLAlchemy and uvicorn, the way such back ends are written.

Pydantic models in and out, a session for each request, the caller's user read from the database
each time, text search with ILIKE, and a commit after the ticket and its history were added.
"""

import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated
from uuid import UUID, uuid4

import jwt
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import FetchedValue, ForeignKey, Identity, or_, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload
from sqlalchemy.types import DateTime, Text

SECRET = os.environ.get("PEER_SECRET", "")
TIME = DateTime(timezone=True)


class Base(DeclarativeBase):
    """What all tables share."""


class User(Base):
    """Somebody with an account."""

    __tablename__ = "users"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    is_active: Mapped[bool]


class Project(Base):
    """What numbers tickets."""

    __tablename__ = "projects"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(Text)
    next_number: Mapped[int]


class Assignee(Base):
    """Who works on a ticket."""

    __tablename__ = "ticket_assignees"
    ticket_id: Mapped[UUID] = mapped_column(ForeignKey("tickets.id"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    position: Mapped[int]


class Ticket(Base):
    """A ticket."""

    __tablename__ = "tickets"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    number: Mapped[int] = mapped_column(Identity(always=True))
    key: Mapped[str] = mapped_column(Text)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, default="open")
    priority: Mapped[str] = mapped_column(Text, default="medium")
    category: Mapped[str | None] = mapped_column(Text)
    department: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list)
    reporter_id: Mapped[UUID | None]
    reporter_name: Mapped[str] = mapped_column(Text)
    resolution: Mapped[str | None] = mapped_column(Text)
    closed_at: Mapped[datetime | None] = mapped_column(TIME)
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime] = mapped_column(TIME, server_default=FetchedValue())
    updated_at: Mapped[datetime] = mapped_column(TIME, server_default=FetchedValue())
    project: Mapped[Project] = relationship()
    assignees: Mapped[list[Assignee]] = relationship(order_by=Assignee.position)


class History(Base):
    """What happened to a ticket."""

    __tablename__ = "events"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    ticket_id: Mapped[UUID]
    ticket_version: Mapped[int]
    type: Mapped[str] = mapped_column(Text)
    actor_id: Mapped[UUID | None]
    actor_name: Mapped[str] = mapped_column(Text)
    changes: Mapped[list[dict[str, str]]] = mapped_column(JSONB, default=list)


class AssigneeOut(BaseModel):
    """An assignee as it is answered."""

    model_config = ConfigDict(from_attributes=True)
    user_id: UUID


class TicketOut(BaseModel):
    """A ticket as it is answered."""

    model_config = ConfigDict(from_attributes=True)
    id: UUID
    number: int
    key: str
    project_id: UUID
    title: str
    description: str
    status: str
    priority: str
    category: str | None
    department: str | None
    tags: list[str]
    reporter_id: UUID | None
    reporter_name: str
    resolution: str | None
    closed_at: datetime | None
    version: int
    created_at: datetime
    updated_at: datetime
    assignees: list[AssigneeOut]


class TicketIn(BaseModel):
    """A ticket to be opened."""

    title: str
    description: str = ""
    priority: str = "medium"


app = FastAPI()


async def database() -> AsyncIterator[AsyncSession]:
    """Lend a session."""
    async with app.state.sessions() as session:
        yield session


Session = Annotated[AsyncSession, Depends(database)]


async def signed_in(session: Session, authorization: Annotated[str, Header()]) -> User:
    """Return the caller, read from the database."""
    claims = jwt.decode(authorization.removeprefix("Bearer "), SECRET, algorithms=["HS256"])
    user = await session.get(User, UUID(claims["sub"]))
    if user is None or not user.is_active:
        raise HTTPException(401)
    return user


Caller = Annotated[User, Depends(signed_in)]
WHOLE = (selectinload(Ticket.project), selectinload(Ticket.assignees))


@app.get("/ping")
async def ping() -> dict[str, str]:
    """Answer."""
    return {"status": "ok"}


@app.get("/tickets/search")
async def search(q: str, session: Session, caller: Caller) -> list[TicketOut]:
    """Find a word."""
    found = await session.scalars(
        select(Ticket).options(*WHOLE)
        .where(or_(Ticket.title.ilike(f"%{q}%"), Ticket.description.ilike(f"%{q}%")))
        .order_by(Ticket.created_at.desc()).limit(25)
    )  # fmt: skip
    return [TicketOut.model_validate(ticket) for ticket in found]


@app.get("/tickets/{id}")
async def read(id: UUID, session: Session, caller: Caller) -> TicketOut:
    """Read one ticket."""
    found = await session.scalar(select(Ticket).options(*WHOLE).where(Ticket.id == id))
    if found is None:
        raise HTTPException(404)
    return TicketOut.model_validate(found)


@app.get("/tickets")
async def latest(
    session: Session, caller: Caller, department: str | None = None
) -> list[TicketOut]:
    """List the newest tickets that are open, or of a department."""
    narrow = Ticket.status == "open" if department is None else Ticket.department == department
    found = await session.scalars(
        select(Ticket).options(*WHOLE).where(narrow).order_by(Ticket.created_at.desc()).limit(50)
    )
    return [TicketOut.model_validate(ticket) for ticket in found]


@app.post("/tickets", status_code=201)
async def create(new: TicketIn, session: Session, caller: Caller) -> TicketOut:
    """Open a ticket and write its history."""
    taken = await session.execute(
        update(Project).where(Project.key == "PEER").values(next_number=Project.next_number + 1)
        .returning(Project.id, Project.next_number)
    )  # fmt: skip
    project_id, number = taken.one()
    ticket = Ticket(**new.model_dump(), key=f"PEER-{number}", project_id=project_id,
                    reporter_id=caller.id, reporter_name=caller.name)  # fmt: skip
    session.add(ticket)
    await session.flush()
    session.add(History(ticket_id=ticket.id, ticket_version=1, type="ticket.created",
                        actor_id=caller.id, actor_name=caller.name))  # fmt: skip
    await session.execute(
        text("INSERT INTO jobs (id, type, args) VALUES (:id, 'bench.nothing', '{}')"),
        {"id": uuid4()},
    )
    await session.commit()
    found = await session.scalar(select(Ticket).options(*WHOLE).where(Ticket.id == ticket.id))
    return TicketOut.model_validate(found)


def main(url: str, port: int) -> None:
    """Serve until killed."""
    engine = create_async_engine(url, pool_size=8, max_overflow=0)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    uvicorn.run(app, port=port, loop="uvloop", log_level="warning", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
