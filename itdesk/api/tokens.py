"""API tokens for scripts, and the public keys that access tokens are verified by."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from itdesk.api.fields import Name
from itdesk.api.route import NO_CONTENT, Body, Call, Reply, Route, Who, created
from itdesk.desk.api_tokens import LONGEST_DAYS, MadeToken, NewToken
from itdesk.model import ApiToken, Grant

JWKS_SECONDS = 300


class TokenRequest(Body):
    """What a token is for, how much it may do, and how long it lasts."""

    name: Name = Field(description="What will use it; each of your tokens has another name.")
    scope: Literal["read", "write", "admin"] = Field(
        "read", description="read: GET only. write: what you may do, but no administration."
    )
    expires_in_days: int | None = Field(
        None,
        ge=1,
        le=LONGEST_DAYS,
        description="Left out: auth.api_token_expire_days. null: never, if that is allowed.",
    )


async def create(call: Call) -> Reply:
    """Make an API token for oneself; its text is shown this once."""
    wanted: TokenRequest = call.body
    days = wanted.expires_in_days
    if "expires_in_days" not in wanted.model_fields_set:
        days = call.desk.settings.auth.api_token_expire_days
    new = NewToken(wanted.name, Grant(wanted.scope), days)
    made = await call.desk.api_tokens.create(call.caller, new)
    return created(made, f"/api/v1/tokens/{made.id}")


async def list_own(call: Call) -> Reply:
    """List one's own API tokens, the newest first."""
    return Reply(await call.desk.api_tokens.list(call.caller))


async def revoke(call: Call) -> Reply:
    """Revoke an API token of one's own; administrators revoke anybody's."""
    await call.desk.api_tokens.revoke(call.caller, call.path["id"])
    return NO_CONTENT


async def list_of(call: Call) -> Reply:
    """List a person's API tokens, the newest first."""
    return Reply(await call.desk.api_tokens.list(call.caller, call.path["id"]))


async def revoke_of(call: Call) -> Reply:
    """Revoke all API tokens of a person."""
    await call.desk.api_tokens.revoke_all(call.caller, call.path["id"])
    return NO_CONTENT


async def jwks(call: Call) -> Reply:
    """Return the public keys that access tokens verify by; none when a secret signs them."""
    headers = {"Cache-Control": f"public, max-age={JWKS_SECONDS}"}
    return Reply(call.desk.tokens.jwks(), 200, headers)


JWKS: Mapping[str, Any] = {
    "type": "object",
    "required": ["keys"],
    "properties": {
        "keys": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["kty", "kid", "alg", "use"],
                "properties": {
                    "kty": {"enum": ["RSA", "OKP"]},
                    "kid": {"type": "string"},
                    "alg": {"enum": ["RS256", "EdDSA"]},
                    "use": {"const": "sig"},
                },
            },
        }
    },
}


ROUTES: list[Route] = [
    Route(
        id="K1",
        method="GET",
        path="/tokens",
        handler=list_own,
        who=Who.USER,
        tag="tokens",
        response=list[ApiToken],
    ),
    Route(
        id="K2",
        method="POST",
        path="/tokens",
        handler=create,
        who=Who.USER,
        tag="tokens",
        body=TokenRequest,
        response=MadeToken,
        status=201,
        errors={"E_TOKEN_NAME_EXISTS": 409, "E_TOKEN_LIMIT": 409},
        session_only=True,
    ),
    Route(
        id="K3",
        method="DELETE",
        path="/tokens/{id}",
        handler=revoke,
        who=Who.USER,
        tag="tokens",
        status=204,
        errors={"E_TOKEN_NOT_FOUND": 404},
        session_only=True,
    ),
    Route(
        id="K4",
        method="GET",
        path="/users/{id}/tokens",
        handler=list_of,
        who=Who.ADMIN,
        tag="tokens",
        response=list[ApiToken],
        errors={"E_USER_NOT_FOUND": 404},
    ),
    Route(
        id="K5",
        method="DELETE",
        path="/users/{id}/tokens",
        handler=revoke_of,
        who=Who.ADMIN,
        tag="tokens",
        status=204,
        errors={"E_USER_NOT_FOUND": 404},
    ),
    Route(
        id="K6",
        method="GET",
        path="/.well-known/jwks.json",
        handler=jwks,
        who=Who.PUBLIC,
        tag="tokens",
        response=JWKS,
        response_media="application/jwk-set+json",
        root=True,
    ),
]
