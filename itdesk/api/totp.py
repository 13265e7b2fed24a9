"""The second factor: answering for it, setting it up, and taking it away."""

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from itdesk.api.auth import SECOND_FACTOR_ERRORS, agent, with_cookies
from itdesk.api.fields import Secret, absent
from itdesk.api.route import NO_CONTENT, Body, Call, Reply, Route, Who
from itdesk.desk.second_factor import Proposal, RecoveryCodes
from itdesk.desk.sessions import SignedIn
from itdesk.model import SecondFactor


def _typed(code: str) -> str:
    return code.replace(" ", "")


Code = Annotated[
    str,
    Field(pattern="^[0-9]{3} ?[0-9]{3}$", description="The six digits of the authenticator."),
    AfterValidator(_typed),
]
RecoveryCode = Annotated[
    str,
    Field(
        pattern="^[A-Za-z2-7]{4}([ -]?[A-Za-z2-7]{4}){3}$", description="One of the printed codes."
    ),
]


class Proof(Body):
    """A code of the authenticator, or a recovery code in its place."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["code"]}, {"required": ["recovery_code"]}]}
    )

    code: Code = absent()
    recovery_code: RecoveryCode = absent()

    @model_validator(mode="after")
    def _one_of_both(self) -> "Proof":
        if len({"code", "recovery_code"} & self.model_fields_set) != 1:
            raise ValueError("send either code or recovery_code")
        return self

    @property
    def given(self) -> str:
        """Return whichever was sent."""
        return self.code or self.recovery_code or ""


class Answer(Proof):
    """The challenge of a sign-in, and the code for it."""

    challenge: Secret


class Enrolment(Body):
    """What proves that it is not just somebody at an open screen."""

    password: Secret | None = Field(None, description="Required of who has one.")


class Confirmation(Body):
    """A first code, which proves that the authenticator has the secret."""

    code: Code


class Farewell(Proof):
    """Password and code."""

    password: Secret | None = Field(None, description="Required of who has one.")


async def answer(call: Call) -> Reply:
    """Finish signing in with the code of the second factor; the tokens come as cookies as well."""
    return with_cookies(call, await _answered(call))


async def answer_token(call: Call) -> Reply:
    """Finish signing in with a code, for clients that keep tokens themselves."""
    return Reply(await _answered(call))


async def status(call: Call) -> Reply:
    """Tell whether one's own sign-in asks for a code, and how many recovery codes are left."""
    return Reply(await call.desk.second_factors.status(call.caller))


async def enrol(call: Call) -> Reply:
    """Make the secret of a second factor; it counts once it was confirmed by a code."""
    return Reply(await call.desk.second_factors.propose(call.caller, call.body.password))


async def confirm(call: Call) -> Reply:
    """Switch one's second factor on; shows the recovery codes, and ends all other sessions."""
    return Reply(await call.desk.second_factors.confirm(call.caller, call.body.code))


async def renew_codes(call: Call) -> Reply:
    """Make new recovery codes; the earlier ones are void."""
    codes = await call.desk.second_factors.renew_codes(
        call.caller, call.body.password, call.body.given
    )
    return Reply(codes)


async def disable(call: Call) -> Reply:
    """Switch one's second factor off."""
    await call.desk.second_factors.disable(call.caller, call.body.password, call.body.given)
    return NO_CONTENT


async def reset(call: Call) -> Reply:
    """Take away a person's second factor and end their sessions; for who lost everything."""
    await call.desk.second_factors.reset(call.caller, call.path["id"])
    return NO_CONTENT


async def _answered(call: Call) -> SignedIn:
    given: Answer = call.body
    return await call.desk.sessions.answer(
        given.challenge, given.given, address=call.address, user_agent=agent(call)
    )


_WRONG = {name: SECOND_FACTOR_ERRORS[name] for name in (
    "E_AUTH_SECOND_FACTOR_INVALID", "E_RATE_LIMITED")}  # fmt: skip


def _post(id: str, path: str, handler: Any, body: type[Body], **fields: Any) -> Route:
    fields = {"who": Who.USER, "session_only": True, "errors": _WRONG, **fields}
    return Route(
        id=id, method="POST", path=path, handler=handler, body=body, tag="second factor",
        rate="auth", **fields,
    )  # fmt: skip


def _answer(id: str, path: str, handler: Any) -> Route:
    return _post(
        id, path, handler, Answer, response=SignedIn, who=Who.PUBLIC, session_only=False,
        errors={**_WRONG, "E_AUTH_TOKEN_INVALID": 401, "E_AUTH_INVALID_CREDENTIALS": 401},
    )  # fmt: skip


ROUTES: list[Route] = [
    _answer("F1", "/auth/totp", answer),
    _answer("F2", "/auth/token/totp", answer_token),
    Route(
        id="F3",
        method="GET",
        path="/auth/totp",
        handler=status,
        who=Who.USER,
        tag="second factor",
        response=SecondFactor,
        session_only=True,
        enrolling=True,
    ),
    _post(
        "F4",
        "/auth/totp/enrol",
        enrol,
        Enrolment,
        response=Proposal,
        errors={"E_AUTH_SECOND_FACTOR_EXISTS": 409, "E_BUSY": 503},
        enrolling=True,
    ),
    _post(
        "F5", "/auth/totp/confirm", confirm, Confirmation, response=RecoveryCodes, enrolling=True
    ),
    _post(
        "F6",
        "/auth/totp/recovery-codes",
        renew_codes,
        Farewell,
        response=RecoveryCodes,
        errors={**_WRONG, "E_BUSY": 503},
    ),
    _post(
        "F7",
        "/auth/totp/disable",
        disable,
        Farewell,
        status=204,
        errors={**_WRONG, "E_BUSY": 503},
    ),
    Route(
        id="F8",
        method="DELETE",
        path="/users/{id}/totp",
        handler=reset,
        who=Who.ADMIN,
        tag="second factor",
        status=204,
        errors={"E_USER_NOT_FOUND": 404, "E_USER_SELF": 409},
    ),
]
