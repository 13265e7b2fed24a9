"""How long an answer takes does not tell whether an address has an account (S-05).

Both kinds are asked in turn, in an order that chance decides, and told apart as well as can be by
time alone: the area under that curve is 0.5 when it cannot be done at all.
"""

import random
import time
from collections.abc import Sequence

import pytest
from aiohttp import ClientSession

from itdesk.desk.verification import REFUSAL_SECONDS
from tests.support.house import House, address
from tests.test_identity import ASKED

STATES = ("verified", "disabled", "unverified")


def area(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return how often one takes longer than another, of all pairs; half of a tie counts."""
    ranked = sorted([(seconds, 0) for seconds in others] + [(seconds, 1) for seconds in ones])
    below, wins = 0, 0.0
    for _, kind in ranked:
        if kind:
            wins += below
        else:
            below += 1
    return wins / (len(ones) * len(others))


async def of_state(house: House, state: str) -> str:
    """Return an address in this state, as long as the others."""
    if state == "unverified":
        return await house.register()
    if state == "verified":
        return await house.verified()
    gone = await house.disabled()
    email = address()
    path = f"/users/{(await house.user(gone))['id']}"
    (await house.live.admin.patch(path, {"email": email})).expect(200)
    return email


async def told_apart(house: House, path: str, state: str, count: int) -> float:
    """Ask as often as said of each kind, and return how well time tells them apart."""
    known = await of_state(house, state)
    url = f"{house.live.url}/api/v1/auth/{path}"
    times: dict[bool, list[float]] = {True: [], False: []}
    order = [kind for _ in range(count // 2) for kind in random.sample([True, False], 2)]
    async with ClientSession() as session:
        for number, is_known in enumerate([True, False] * 5 + order):
            body = {"email": known if is_known else address(), **ASKED[path]}
            started = time.perf_counter()
            async with session.post(url, json=body) as response:
                await response.read()
            if number >= 10:
                times[is_known].append(time.perf_counter() - started)
    return area(times[True], times[False])


async def test_a_wrong_code_is_refused_at_the_same_time_for_every_address(house: House) -> None:
    """S-05: counting a wrong try is work that there is only where there is a code."""
    for email in (address(), await house.register()):
        started = time.perf_counter()
        (await house.post("verify-code", email=email, code="000000")).expect(400)
        assert time.perf_counter() - started >= REFUSAL_SECONDS


@pytest.mark.parametrize("path", ["resend", "forgot-password"])
async def test_asking_again_is_the_same_work_for_every_address(house: House, path: str) -> None:
    """S-05: a job that stood for the next request as well would live longer with an account."""
    for email in (address(), await house.register()):
        for _ in range(2):
            (await house.post(path, email=email)).expect(200)
        asked = "SELECT type FROM jobs WHERE type LIKE 'auth.%' AND args->>'email' = $1"
        assert len(await house.sql(asked, email)) == 2


@pytest.mark.parametrize("path", ["login", "forgot-password"])
async def test_time_does_not_tell_much_after_a_few_requests(house: House, path: str) -> None:
    """S-05, short: what anybody would see at once."""
    assert abs(await told_apart(house, path, "unverified", 80) - 0.5) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("path", ASKED)
async def test_time_does_not_tell_whether_an_address_has_an_account(
    house: House, path: str, state: str
) -> None:
    """S-05: of 400 each, within 0.50 +- 0.07; once more when chance was against us."""
    found = [await told_apart(house, path, state, 800)]
    if abs(found[0] - 0.5) > 0.07:
        found.append(await told_apart(house, path, state, 800))
    assert abs(found[-1] - 0.5) <= 0.07, found
