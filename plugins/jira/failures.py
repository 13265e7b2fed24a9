"""What can go wrong with Jira: one class for each distinct reaction.

Each is also the answer of a request that needed Jira; what Jira said is never relayed, but kept
in `said` for the log.
"""

from itdesk.errors import UpstreamFailed


class JiraFailure(UpstreamFailed):
    """Jira could not do what was asked."""

    default_code = "E_JIRA_UNAVAILABLE"

    def __init__(self, message: str, *, said: str = "", retry_after: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.said = said


class Unavailable(JiraFailure):
    """Jira is out for now, or something else answers in its place: try again later.

    `sent` tells whether the request may have been carried out all the same.
    """

    def __init__(self, message: str, *, said: str = "", sent: bool = True) -> None:
        super().__init__(message, said=said)
        self.sent = sent


class RateLimited(JiraFailure):
    """Jira wants no more requests for `seconds`: none at all, or none about one issue (`scope`)."""

    def __init__(self, seconds: float, scope: str = "") -> None:
        whom = f" about {scope}" if scope else ""
        super().__init__(
            f"Jira takes no more requests{whom} for now.", retry_after=max(1, round(seconds))
        )
        self.seconds = seconds
        self.scope = scope


class Unauthorized(JiraFailure):
    """Jira does not accept the account: an operator has to act."""


class Missing(JiraFailure):
    """There is no such thing in Jira, or the account may not see it."""


class Refused(JiraFailure):
    """Jira understood and will not do it: asking again does not help.

    `fields` are those that it complains about.
    """

    def __init__(
        self, message: str, *, http: int, said: str = "", fields: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(message, said=said)
        self.http = http
        self.fields = fields
