"""Suggestions and the chat, from a real daemon over real sockets, with rules and with a model."""

from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest

from itdesk.api import ROUTES
from tests.support.assist import chat, streamed
from tests.support.daemon import Live, serving
from tests.support.ollama import FakeOllama
from tests.support.postgres import Server

PRIORITIES = {"low", "medium", "high", "critical"}
CATEGORIES = {
    "infrastructure", "network", "security", "application", "service_request", "hardware",
    "email", "problem",
}  # fmt: skip
BUDGET = 1.0
QUICK = {
    "ITDESK_SCANNER__ENABLED": "false",
    "ITDESK_AI__TIMEOUT_SECONDS": str(BUDGET),
    "ITDESK_AI__BREAKER_SECONDS": "1",
    # What becomes of new tickets is asked in test_suggestions.
    "ITDESK_AI__ENRICH": "false",
    "ITDESK_TICKETS__SEARCH_MILLISECONDS": "2000",
}


@pytest.fixture(scope="module")
def modelled(pg_server: Server, ollama: FakeOllama) -> Iterator[Live]:
    """A desk with a model."""
    more = {"OLLAMA_MODEL": "llama3.2", "ITDESK_AI__CONCURRENCY": "16"}
    with serving(pg_server, **QUICK, **more, OLLAMA_BASE_URL=ollama.url) as live:
        yield live


def is_classification(found: Any) -> None:
    """Assert that a classification holds what it may and nothing else."""
    assert set(found) == {
        "priority", "category", "recommendations", "assignee", "source", "sources",
    }  # fmt: skip
    assert found["priority"] in PRIORITIES and found["category"] in CATEGORIES
    assert 2 <= len(found["recommendations"]) <= 4
    assert all(1 <= len(one) <= 500 for one in found["recommendations"])
    assert found["source"] in ("rules", "ollama")


# --- by rules ------------------------------------------------------------------------------------

CLASSIFIED = [
    ("Somebody sent a phishing mail to our server", "critical", "security"),
    ("Mails from the server do not arrive in Outlook", "high", "email"),
    ("The database is slow since the VPN was changed", "high", "infrastructure"),
    ("VPN drops on my laptop", "high", "network"),
    ("Laptop needs a new account", "medium", "hardware"),
    ("Access to the reports of finance", "medium", "service_request"),
    ("Bug in the monthly report", "medium", "application"),
    ("Where is the coffee?", "medium", "service_request"),
    ("Der Drucker im Flur druckt nicht", "medium", "hardware"),
    ("Verdächtige Nachricht erhalten", "critical", "security"),
]


@pytest.mark.parametrize("case", CLASSIFIED, ids=lambda case: case[0])
async def test_rules_go_by_whole_words_in_a_fixed_order(live: Live, case: Any) -> None:
    """R62, S4-58, SPEC section 7: the first class of which a word occurs decides."""
    title, priority, category = case
    found = (await live.admin.post("/ai/classify", {"title": title})).expect(200)
    is_classification(found)
    assert (found["priority"], found["category"]) == (priority, category)
    assert found["source"] == "rules" and found["sources"] == []


async def test_parts_of_words_do_not_count(live: Live) -> None:
    """`blackmailer`, `screened` and `reinstall` are none of the words that they contain."""
    body = {"title": "Servery decorated", "description": "screened mailed-in apiary vpns bugfree"}
    found = (await live.admin.post("/ai/classify", body)).expect(200)
    assert found["category"] == "service_request" and len(found["recommendations"]) == 3


async def test_recommendations_are_in_the_language_of_the_ticket(live: Live) -> None:
    """R62: three general ones, and one of the class."""
    german = {"title": "WLAN geht nicht", "description": "Seit heute ist im Lager kein WLAN."}
    english = {"title": "No wifi", "description": "There is no wifi in the warehouse."}
    said = [
        (await live.admin.post("/ai/classify", body)).expect(200)["recommendations"]
        for body in (german, english)
    ]
    assert [len(one) for one in said] == [4, 4]
    assert "Tickets" in said[0][2] and "solved tickets" in said[1][2]


async def test_an_explicit_wish_gives_a_draft_that_can_be_sent(live: Live) -> None:
    """R63, S4-59: create_ticket with a draft that R27 accepts as it is, tagged ai-draft."""
    user, agent = await live.person(), await live.person("agent")
    for person in (user, agent):
        answer = await chat(person, "create a ticket: VPN down")
        assert answer["action"] == "create_ticket" and answer["source"] == "rules"
        draft = answer["ticket"]
        assert draft["title"] == "VPN down" and draft["tags"] == ["ai-draft"]
        assert (draft["priority"], draft["category"]) == ("high", "network")
        ticket = (await person.post("/tickets", draft)).expect(201)
        assert ticket["title"] == "VPN down" and ticket["tags"] == ["ai-draft"]
        assert (draft["assignee"] is None) == (person is user)
        assert ticket["assignee_id"] == draft["assignee"]


@pytest.mark.parametrize(
    "said",
    [
        "Hello",
        "How are you today?",
        "Thanks a lot!",
        "Guten Morgen",
        "Vielen Dank, das war alles",
        "The report was great",
        "Thanks for the new laptop!",
        "The VPN works again, perfect",
        "Der neue Drucker ist super",
        "Danke für den Zugang",
    ],
)
async def test_small_talk_gives_nothing_to_do(live: Live, said: str) -> None:
    """S4-59: action and ticket are null."""
    answer = await chat(live.admin, said)
    assert answer["action"] is None and answer["ticket"] is None and answer["shown"] is None
    assert answer["reply"] and answer["source"] == "rules"


@pytest.mark.parametrize(
    "said",
    [
        "Great, the report has errors again", "Thanks for the laptop, but its screen flickers",
        "It would be great if the VPN was faster", "Der Drucker ist super, druckt aber nicht",
        "The printer on floor two jams, thanks", "Perfect timing: somebody hacked the server",
        "The report was great " + "and the figures of the first quarter look odd to me " * 2,
    ],
)  # fmt: skip
async def test_a_problem_with_praise_in_it_is_one(live: Live, said: str) -> None:
    """R63: politeness does not make small talk of what somebody must look at."""
    assert (await chat(live.admin, said))["action"] == "create_ticket"


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("I forgot my password", "Forgot password"),
        ("Firefox shows old data", "Ctrl+F5"),
        ("The verification code never came", "newest code"),
        ("I have no access to the wiki", "Sign out and in"),
        ("Ich habe mein Passwort vergessen", "Passwort vergessen"),
        ("Please do not create a ticket, my password expired", "Forgot password"),
    ],
)
async def test_frequent_questions_get_a_quick_fix(live: Live, said: str, word: str) -> None:
    """R63: a fix, and no ticket."""
    answer = await chat(live.admin, said)
    assert word in answer["reply"] and answer["action"] is None


@pytest.mark.parametrize(
    "said",
    [
        "My password was stolen",
        "Someone hacked my browser",
        "Everybody lost access to production",
        "Mein Passwort wurde gestohlen",
    ],
)
async def test_what_is_risky_gets_no_quick_fix(live: Live, said: str) -> None:
    """R63: somebody has to look: a ticket is drafted instead."""
    answer = await chat(live.admin, said)
    assert answer["action"] == "create_ticket" and answer["ticket"]["title"]
    assert "Ctrl+F5" not in answer["reply"] and "Caps Lock" not in answer["reply"]


async def test_a_ticket_is_shown_to_whoever_may_read_it(live: Live) -> None:
    """R63: to anybody else it is as if there were none."""
    owner, stranger = await live.person(), await live.person()
    ticket = await owner.ticket("Canary in a coal mine")
    asked = f"How is {ticket['key']} doing?"
    answer = await chat(owner, asked)
    assert answer["action"] == "show_ticket" and answer["shown"]["id"] == ticket["id"]
    assert "Canary" in answer["reply"] and answer["ticket"] is None
    hidden = await chat(stranger, asked)
    missing = await chat(stranger, "How is TSK-99999999 doing?")
    assert hidden == missing and hidden["shown"] is None


async def test_the_wish_is_about_what_was_said_before(live: Live) -> None:
    """R63: with nothing said at all, the chat asks what it is about."""
    answer = await chat(live.admin, "My scanner makes a strange noise", "Open a ticket please")
    assert answer["ticket"]["title"] == "My scanner makes a strange noise"
    assert answer["ticket"]["category"] == "hardware"
    nothing = await chat(live.admin, "Create a ticket!")
    assert nothing["action"] is None and "What is it about" in nothing["reply"]


async def test_the_draft_of_a_long_conversation_holds_its_end(live: Live) -> None:
    """R63: what was said last is in the description, however much was said before."""
    before = ["My scanner makes a strange noise. " + "It hums. " * 1000] * 12
    answer = await chat(live.admin, *before, "It began on Monday. Open a ticket please")
    assert answer["ticket"]["description"].endswith("It began on Monday. Open a ticket please")


async def test_the_locale_decides_the_language(live: Live) -> None:
    """R63: else it is that of the text."""
    answer = await chat(live.admin, "create a ticket: VPN", locale="de-AT")
    assert "Ticket entworfen" in answer["reply"]


async def test_what_is_no_conversation_is_refused(live: Live) -> None:
    """R63: 1 to 40 messages by user and assistant."""
    one = {"role": "user", "content": "x"}
    for body, path in [
        ({"messages": []}, "messages"),
        ({"messages": [one] * 41}, "messages"),
        ({"messages": [{**one, "role": "system"}]}, "messages.0.role"),
        ({"messages": [{**one, "content": ""}]}, "messages.0.content"),
        ({"messages": [one], "locale": "../../etc"}, "locale"),
    ]:
        answer = await live.admin.post("/ai/chat", body)
        fields = answer.refused(422, "E_VALIDATION_ERROR")["fields"]
        assert fields[0]["path"] == path, fields
    (await live.admin.post("/ai/chat", {"messages": [one] * 40})).expect(200)
    assistant = {"role": "assistant", "content": "x"}
    (await live.admin.post("/ai/chat", {"messages": [assistant]})).expect(200)


# --- by a model ----------------------------------------------------------------------------------


async def test_the_model_is_asked_by_name_and_its_answer_is_used(
    modelled: Live, model: FakeOllama
) -> None:
    """S4-15, S4-58: OLLAMA_BASE_URL and OLLAMA_MODEL; the source is said."""
    model.says = lambda prompt, schema: {
        "category": "hardware", "priority": "low", "recommendations": ["Dust it.", "Oil it."],
    }  # fmt: skip
    found = (await modelled.admin.post("/ai/classify", {"title": "VPN down"})).expect(200)
    is_classification(found)
    assert (found["category"], found["priority"], found["source"]) == ("hardware", "low", "ollama")
    assert found["recommendations"] == ["Dust it.", "Oil it."]
    [asked] = model.calls()
    assert asked.body["model"] == "llama3.2" and asked.body["stream"] is False
    assert asked.body["options"]["temperature"] == 0.1
    assert asked.body["format"]["properties"]["priority"]["enum"] == [
        "low", "medium", "high", "critical",
    ]  # fmt: skip
    assert "VPN down" in asked.body["prompt"] and "VPN down" not in asked.body["system"]


async def test_a_reply_can_be_read_while_it_is_written(modelled: Live, model: FakeOllama) -> None:
    """R63, stream: previews add up to the beginning of the reply; the answer comes last."""
    model.mode, model.seconds_a_token = "slow", 0.01
    reply = 'Turn it off, count to "ten" \\ and turn it on again. Grüße \U0001f600 and good luck!'
    model.says = lambda prompt, schema: {"reply": reply, "action": None}
    previews, answer = await streamed(modelled.admin, "My gadget is odd")
    assert answer["reply"] == reply and answer["source"] == "ollama"
    assert len(previews) >= 2
    assert reply.startswith("".join(one["text"] for one in previews))
    assert model.calls()[0].body["stream"] is True


async def test_a_long_conversation_reaches_the_model_from_its_end(
    modelled: Live, model: FakeOllama
) -> None:
    """R63: what is to be answered is there whole, with what was said shortly before."""
    model.says = lambda prompt, schema: {"reply": "I see.", "action": None}
    ticket = await modelled.admin.ticket("Long story", description="about " * 200)
    said = [f"Message {n:02}. " + "word " * 395 + f"End {n:02}." for n in range(19)]
    last = f"{ticket['key']}? " + "more " * 390 + "THE QUESTION"
    await chat(modelled.admin, *said, last)
    [prompt] = model.prompts()
    assert last in prompt and "Long story" in prompt
    there = [n for n in range(19) if f"End {n:02}." in prompt]
    assert there and there == list(range(there[0], 19)) and len(there) >= 7
    assert [one for one in range(there[0] - 1) if f"Message {one:02}" in prompt] == []
    order = [prompt.index(f"End {n:02}.") for n in there] + [prompt.index("THE QUESTION")]
    assert order == sorted(order)


async def test_an_outage_before_a_streamed_answer_is_503(modelled: Live, model: FakeOllama) -> None:
    """R63, stream: nothing has begun that could only be torn."""
    body = {"messages": [{"role": "user", "content": "How is TSK-1 doing?"}], "stream": True}
    conn = await asyncpg.connect(modelled.daemon.env["DATABASE_URL"])
    try:
        async with conn.transaction():
            await conn.execute("LOCK TABLE tickets IN ACCESS EXCLUSIVE MODE")
            answer = await modelled.admin.post("/ai/chat", body)
    finally:
        await conn.close()
    answer.refused(503, "E_DATABASE_UNAVAILABLE")
    assert model.calls() == []


async def test_without_a_model_a_streamed_chat_is_its_answer(live: Live) -> None:
    """R63, stream: rules have nothing to preview."""
    previews, answer = await streamed(live.admin, "create a ticket: VPN down")
    assert previews == [] and answer["ticket"]["title"] == "VPN down"
    assert answer["source"] == "rules"


async def test_an_explicit_wish_is_granted_whatever_the_model_thinks(
    modelled: Live, model: FakeOllama
) -> None:
    """R63: the rules' draft beside the model's reply."""
    model.says = lambda prompt, schema: {"reply": "No.", "action": None, "ticket": None}
    answer = await chat(modelled.admin, "create a ticket: VPN down")
    assert answer["action"] == "create_ticket" and answer["ticket"]["title"] == "VPN down"
    assert answer["reply"] == "No." and answer["source"] == "ollama"


async def test_the_model_shows_no_other_ticket_than_the_person_named(
    modelled: Live, model: FakeOllama
) -> None:
    """R63: neither one that the person may not read, nor any that the model thinks of."""
    owner, stranger = await modelled.person(), await modelled.person()
    own, other = await owner.ticket("My own"), await stranger.ticket("Not yours")
    said = {"reply": "Look.", "action": "show_ticket"}

    def names(key: str | None) -> Callable[[str, Any], Any]:
        return lambda prompt, schema: {**said, "ticket_key": key}

    for key in (other["key"], "TSK-99999999", None):
        model.says = names(key)
        answer = await chat(owner, f"How are {own['key']} and {other['key']}?")
        assert answer["action"] is None and answer["shown"] is None
        assert answer["source"] == "ollama"
    model.says = names(own["key"].lower())
    answer = await chat(owner, f"How is {own['key']}?")
    assert answer["action"] == "show_ticket" and answer["shown"]["id"] == own["id"]
    assert "Not yours" not in str(model.asked) and "My own" in model.prompts()[0]


async def test_the_models_draft_can_be_sent(modelled: Live, model: FakeOllama) -> None:
    """S4-59: whatever the model adds, R27 accepts it."""
    model.says = lambda prompt, schema: {
        "reply": "Here you are.", "action": "create_ticket",
        "ticket": {"title": "  Broken <b>fan</b>\n", "description": "x", "priority": "low",
                   "category": "hardware", "tags": ["fan", "ai-draft", "fan"]},
    }  # fmt: skip
    user = await modelled.person()
    draft = (await chat(user, "My fan is broken"))["ticket"]
    assert draft["title"] == "Broken fan" and draft["tags"] == ["ai-draft", "fan"]
    (await user.post("/tickets", draft)).expect(201)


def test_what_asks_a_model_has_a_limit_of_its_own() -> None:
    """R62, R63: the rate class ai."""
    rates = {route.id: route.rate for route in ROUTES}
    assert rates["R62"] == rates["R63"] == "ai"


async def test_unset_no_model_is_asked(live: Live, model: FakeOllama) -> None:
    """S4-15: without OLLAMA_BASE_URL there is no network call, and rules answer."""
    found = (await live.admin.post("/ai/classify", {"title": "VPN down"})).expect(200)
    assert found["source"] == "rules" and model.asked == []
    status = (await live.nobody.call("GET", "/readyz")).json
    assert "ollama" not in str(status)
