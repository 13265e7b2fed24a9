"""Which words may go to whom: what was said internally cannot be put into a customer's mail.

The two kinds of text are different types, and a customer's news takes only one of them: the type
checker refuses the other, and so does the object itself.
"""

from typing import final

from itdesk.frozen import frozen
from itdesk.model import Caller, Comment, Role, Ticket, new_id


@final
@frozen
class PublicText:
    """Words that everybody may read who may read the ticket."""

    words: str


@final
@frozen
class InternalText:
    """Words that only agents and above may read; as a string it shows nothing of them."""

    words: str

    def __str__(self) -> str:
        return "<internal>"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return "<internal>"


def said(comment: Comment) -> PublicText | InternalText:
    """Return a comment's words as what they are."""
    return InternalText(comment.body) if comment.internal else PublicText(comment.body)


def described(ticket: Ticket) -> PublicText:
    """Return a ticket's description."""
    return PublicText(ticket.description)


def customer(ticket: Ticket) -> Caller:
    """Return whoever reported a ticket, with no more rights than any customer has.

    Where nobody here did, it is somebody to whom nothing belongs.
    """
    return Caller(ticket.reporter_id or new_id(), ticket.reporter_name, Role.USER)


@frozen
class CustomerNews:
    """What somebody below an agent is told; TypeError for words that are not public."""

    what: str
    text: PublicText | None

    def __post_init__(self) -> None:
        if self.text is not None and type(self.text) is not PublicText:
            raise TypeError("what was said internally is not for customers")

    @property
    def words(self) -> str:
        """Return the words to show."""
        return self.text.words if self.text is not None else ""


@frozen
class StaffNews:
    """What agents and above are told."""

    what: str
    text: PublicText | InternalText | None

    @property
    def words(self) -> str:
        """Return the words to show."""
        return self.text.words if self.text is not None else ""
