"""What the identity services do in the background: keys from the file, uses of tokens to rows."""

from contextlib import suppress

from itdesk.desk.api_tokens import ApiTokens
from itdesk.desk.tokens import Tokens
from itdesk.errors import Unavailable
from itdesk.runtime.actor import Actor


class Identity(Actor):
    """Takes over rotated keys within seconds, and writes down which API tokens were used."""

    name = "identity"
    period = 2.0
    critical = False

    def __init__(self, tokens: Tokens, api_tokens: ApiTokens) -> None:
        self._tokens = tokens
        self._api_tokens = api_tokens

    async def handle(self, message: object) -> None:
        """Look at the key file, then write."""
        await self._tokens.reload()
        await self._api_tokens.write_uses()

    async def teardown(self) -> None:
        """Write what was noted last; without a database it is lost, which harms nobody."""
        with suppress(Unavailable):
            await self._api_tokens.write_uses()
