"""The pages behind the links of mails, as programs and a real browser see them."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.daemon import PASSWORD, Answer, Live, lasting_port
from tests.support.house import ANOTHER, CONFIRM, NONE, RESET, House, address, opened_house
from tests.support.postbox import link_in, token_in
from tests.support.postgres import Server

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PAGES = ("verify-email", "reset-password", "forgot-password")


async def get(live: Live, path: str, **query: str) -> Answer:
    return await live.nobody.call("GET", f"/{path}", params=query)


async def send(live: Live, path: str, headers: Any = None, **fields: str) -> Answer:
    headers = {**BROWSER, **(headers or {})}
    return await live.nobody.call("POST", f"/{path}", data=fields, headers=headers)


def problem_of(answer: Answer) -> str:
    """Return what a page says is wrong."""
    (problem,) = re.findall(r'role="alert">([^<]+)<', answer.raw.decode())
    return str(problem)


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_runs_nothing_loads_nothing_and_tells_nobody(house: House, path: str) -> None:
    """S-19: no script, no frame, no referrer, no cache, no cookie; readable by everybody."""
    query = {} if path.startswith("forgot") else {"token": NONE}
    page = await get(house.live, path, **query)
    html = page.raw.decode()
    assert page.status == 200 and page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    for rule in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'none'"):
        assert rule in policy
    assert "unsafe" not in policy and "script" not in policy and "<script" not in html
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in page.headers
    assert not re.findall(r'(?:src|href)="', html)
    assert '<html lang="en">' in html and html.count("<h1>") == 1 and "<title>" in html
    for name in re.findall(r'<input id="(\w+)"', html):
        assert f'<label for="{name}">' in html


async def test_a_mail_program_that_opens_every_link_uses_none_up(house: House) -> None:
    """S-19: GET and HEAD have no effect; the button has, once; nobody is signed in by it."""
    email = await house.register()
    token = token_in(await house.box.next(email, CONFIRM))
    for method in ("GET", "HEAD", "OPTIONS", "GET"):
        await house.live.nobody.call(method, f"/verify-email?token={token}")
    assert (await house.user(email))["is_verified"] is False
    done = await send(house.live, "verify-email", token=token)
    assert done.status == 200 and b"is confirmed" in done.raw
    assert "Set-Cookie" not in done.headers
    assert (await house.user(email))["is_verified"] is True
    again = await send(house.live, "verify-email", token=token)
    assert again.status == 400 and "Ask for a new one" in problem_of(again)


async def test_a_password_is_set_by_the_page(house: House) -> None:
    """S-18, S-19: what is wrong is said above the same form, which keeps the link."""
    email = await house.verified()
    asked = await send(house.live, "forgot-password", email=email)
    assert asked.status == 200
    token = token_in(await house.box.next(email, RESET))
    assert (await get(house.live, "reset-password", token=token)).status == 200
    for weak, why in (("short", "at least 8 characters"), ("password123", "most common")):
        answer = await send(house.live, "reset-password", token=token, new_password=weak)
        assert answer.status == 422 and why in problem_of(answer)
        assert f'name="token" value="{token}"' in answer.raw.decode()
    done = await send(house.live, "reset-password", token=token, new_password=ANOTHER)
    assert done.status == 200 and "Set-Cookie" not in done.headers
    (await house.login(email, ANOTHER)).expect(200)
    again = await send(house.live, "reset-password", token=token, new_password=PASSWORD)
    assert again.status == 400 and problem_of(again)


async def test_asking_for_a_link_tells_nothing(house: House) -> None:
    """S-05: the page is the same for every address."""
    pages = [
        (await send(house.live, "forgot-password", email=email)).raw
        for email in (address(), await house.verified(), await house.disabled())
    ]
    assert len(set(pages)) == 1
    bad = await send(house.live, "forgot-password", email='"><script>alert(1)</script>')
    assert bad.status == 422 and "e-mail address" in problem_of(bad)
    assert b"<script" not in bad.raw


async def test_what_is_in_a_link_stays_text(house: House) -> None:
    """Nothing that a link brings becomes markup."""
    evil = "\"><script>alert(1)</script><img src=x onerror='alert(1)'>"
    for path in ("verify-email", "reset-password"):
        page = await get(house.live, path, token=evil)
        assert b"<script" not in page.raw and b"<img" not in page.raw
        answer = await send(house.live, path, token=evil, new_password=ANOTHER)
        assert answer.status in (400, 422) and b"<script" not in answer.raw


@pytest.mark.parametrize("path", PAGES)
async def test_a_form_that_is_none_is_refused_by_a_page(house: House, path: str) -> None:
    """Garbage is 4xx, in words; never a 500."""
    kind = {"Content-Type": "application/x-www-form-urlencoded", **BROWSER}
    nul = b"token=a&new_password=" + b"%00" * 8 + b"&email=a%00b"
    many = b"&".join(b"a=1" for _ in range(50))
    bodies = (b"", b"\xff\xfe", many, b"token=%ff", b"x=y", nul, b"=" * 1000)
    for body in bodies:
        answer = await house.live.nobody.call("POST", f"/{path}", data=body, headers=kind)
        assert answer.status in (400, 422), body
        assert problem_of(answer) and b"\x00" not in answer.raw
    large = await house.live.nobody.call("POST", f"/{path}", data=b"a" * 20_000, headers=kind)
    assert large.status == 413
    json = await house.live.nobody.call("POST", f"/{path}", json={"token": NONE})
    json.refused(400, "E_BAD_REQUEST")  # a program is told as programs are


@pytest.fixture
def front(pg_server: Server) -> Iterator[House]:
    """A daemon that is its own frontend: links lead to it."""
    port = lasting_port()
    with opened_house(pg_server, port, ITDESK_SERVER__PUBLIC_URL=f"http://127.0.0.1:{port}") as own:
        yield own


@pytest.mark.slow
@pytest.mark.parametrize("scripts", [True, False], ids=["with-scripts", "without-scripts"])
async def test_a_browser_follows_the_links_of_mails(front: House, scripts: bool) -> None:
    """The whole way in Chromium: confirm, ask for a password, set it; by the keyboard alone."""
    from playwright.async_api import async_playwright

    email = await front.register()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = await (await browser.new_context(java_script_enabled=scripts)).new_page()
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))

        await page.goto(link_in(await front.box.next(email, CONFIRM)))
        assert (await front.user(email))["is_verified"] is False
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Your address is confirmed").wait_for()
        assert (await front.user(email))["is_verified"] is True

        await page.goto(f"{front.live.url}/forgot-password")
        await page.get_by_label("Your e-mail address").fill(email)
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Look into your mail").wait_for()

        await page.goto(link_in(await front.box.next(email, RESET)))
        await page.get_by_label("New password").fill("password123")
        await page.keyboard.press("Enter")
        await page.get_by_role("alert").wait_for()
        await page.get_by_label("New password").fill(ANOTHER)
        await page.get_by_role("button", name="Set the password").click()
        await page.get_by_role("heading", name="Your password is set").wait_for()
        (await front.login(email, ANOTHER)).expect(200)

        button = {"background-color": "rgb(26, 86, 176)"}
        await page.goto(f"{front.live.url}/forgot-password")
        if scripts:
            look = "e => getComputedStyle(e).backgroundColor"
            found = await page.get_by_role("button").evaluate(look)
            assert found == button["background-color"], "the policy keeps the style out"
        assert {urlsplit(url).netloc for url in requests} == {urlsplit(front.live.url).netloc}
        # The answer 422 is told there; anything else would be our policy's complaint.
        assert all("422" in text for text in complaints), complaints
        await browser.close()
