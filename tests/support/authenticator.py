"""An authenticator of its own making: RFC 6238 in six lines, independent of what the desk uses."""

import base64
import hmac
import struct

from itdesk.runtime.clock import Clock
from tests.support.daemon import PASSWORD, Person


def code_at(secret: str, seconds: float) -> str:
    """Return the code that a phone shows at this time for a secret as it was typed in."""
    digest = hmac.digest(base64.b32decode(secret), struct.pack(">Q", int(seconds) // 30), "sha1")
    start = digest[-1] & 15
    number = int.from_bytes(digest[start : start + 4], "big") & 0x7FFFFFFF
    return f"{number % 1_000_000:06d}"


def wrong_code(secret: str, seconds: float) -> str:
    """Return a code that is right neither now nor a step earlier or later."""
    right = {code_at(secret, seconds + drift) for drift in (-60, -30, 0, 30, 60)}
    return next(code for code in ("000000", "111111", "222222", "333333", "444444", "555555")
                if code not in right)  # fmt: skip


def now() -> float:
    """Return the time that codes are made of."""
    return Clock().now().timestamp()


async def enrol(person: Person) -> tuple[str, list[str], float]:
    """Set up a second factor; return its secret, the recovery codes and when it was used."""
    proposal = (await person.post("/auth/totp/enrol", {"password": PASSWORD})).expect(200)
    at = now()
    code = {"code": code_at(proposal["secret"], at)}
    codes = (await person.post("/auth/totp/confirm", code)).expect(200)["recovery_codes"]
    return proposal["secret"], codes, at
