"""What a model is given to read: only what the reader of its answer may see; and S-36: nothing
that it then says does more than suggest."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.assist import CANARY, ORDERS, chat, is_answer, is_text, malice, solved
from tests.support.daemon import Live, Person, serving
from tests.support.ollama import FakeOllama
from tests.support.postgres import Server

# Stands in for a remote knowledge base: it says what a file holds, and notes who asks.
HANDBOOK = '''
"""Says what a file holds."""
import asyncio, json
from pathlib import Path
from pydantic import BaseModel
from itdesk.hookspecs import Passage, hookimpl

class Settings(BaseModel):
    file: str

class Plugin:
    name, itdesk_api, Settings = "handbook", 1, Settings

    def __init__(self, settings):
        self.file = Path(settings.file)

    @hookimpl
    async def itdesk_knowledge(self, desk, caller, query):
        kept = json.loads(self.file.read_text())
        with self.file.with_suffix(".asked").open("a") as log:
            log.write(json.dumps([caller.name, query]) + "\\n")
        if kept["mode"] == "off":
            return None
        if kept["mode"] == "hang":
            await asyncio.Event().wait()
        if kept["mode"] == "fail":
            raise ValueError("no")
        return [Passage(**one) for one in kept["passages"]]
'''


class Handbook:
    """What the plugin will say."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.holds()

    def holds(self, *passages: dict[str, Any], mode: str = "ok") -> None:
        """Let it hold these passages, and forget who asked."""
        self.file.write_text(json.dumps({"mode": mode, "passages": passages}))
        self.file.with_suffix(".asked").write_text("")

    def asked(self) -> list[tuple[str, str]]:
        """Return who asked, and what."""
        lines = self.file.with_suffix(".asked").read_text().splitlines()
        return [tuple(orjson.loads(line)) for line in lines]


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Handbook:
    """A plugin of somebody else's that knows things."""
    folder = tmp_path_factory.mktemp("plugins")
    folder.chmod(0o755)
    plugin = folder / "handbook.py"
    plugin.write_text(HANDBOOK)
    plugin.chmod(0o644)
    return Handbook(folder / "handbook.json")


@pytest.fixture(scope="module")
def desk(pg_server: Server, ollama: FakeOllama, handbook: Handbook) -> Iterator[Live]:
    """A desk with a model and somebody else's knowledge; four passages at most."""
    with serving(
        pg_server,
        ITDESK_SCANNER__ENABLED="false",
        # What becomes of new tickets is asked in test_suggestions.
        ITDESK_AI__ENRICH="false",
        OLLAMA_BASE_URL=ollama.url,
        ITDESK_AI__TIMEOUT_SECONDS="5",
        ITDESK_AI__CONCURRENCY="16",
        ITDESK_AI__TOP_MATCHES="4",
        ITDESK_PLUGIN_HOST__DIRECTORIES=f'["{handbook.file.parent}"]',
        ITDESK_PLUGINS__HANDBOOK__FILE=str(handbook.file),
    ) as live:
        yield live


@pytest.fixture
def model(ollama: FakeOllama, handbook: Handbook) -> Iterator[FakeOllama]:
    """The model, honest and with nothing asked; the handbook is empty."""
    ollama.reset()
    handbook.holds()
    yield ollama
    ollama.reset()


async def classify(person: Person, title: str, description: str = "") -> Any:
    """Return what is suggested for a ticket."""
    body = {"title": title, "description": description}
    return (await person.post("/ai/classify", body)).expect(200)


# --- knowledge -----------------------------------------------------------------------------------


async def test_how_a_ticket_was_solved_helps_whoever_may_read_it(
    desk: Live, model: FakeOllama
) -> None:
    """R62: the prompt has the resolution, the answer names its source; for others there is none."""
    owner, stranger, agent = await desk.person(), await desk.person(), await desk.person("agent")
    cure = f"Reseat the flux capacitor {CANARY}"
    ticket = await solved(desk, owner, "Warp drive makes rattling noise", cure)
    for person in (owner, agent):
        model.asked.clear()
        found = await classify(person, "Warp drive rattling again")
        assert found["source"] == "ollama"
        [prompt] = model.prompts()
        assert cure in prompt
        assert found["sources"] == [
            {
                "source": ticket["key"],
                "title": "Warp drive makes rattling noise",
                "url": f"/api/v1/tickets/{ticket['key']}",
            }
        ]
        assert ticket["key"] in str((await chat(person, "Warp drive rattling"))["sources"])
    model.asked.clear()
    found = await classify(stranger, "Warp drive rattling again")
    assert found["sources"] == []
    assert (await chat(stranger, "Warp drive rattling"))["sources"] == []
    assert CANARY not in str(model.asked)


async def test_only_closed_tickets_and_public_words_are_knowledge(
    desk: Live, model: FakeOllama
) -> None:
    """An internal comment leads to nothing and is nowhere, not even for agents."""
    owner, agent = await desk.person(), await desk.person("agent")
    ticket = await solved(desk, owner, "Teleporter hums", "Replaced the Heisenberg compensator")
    internal = {"body": f"zorblax {CANARY}", "internal": True}
    (await agent.post(f"/tickets/{ticket['key']}/comments", internal)).expect(201)
    await owner.ticket("Teleporter hums loudly", description=f"not yet solved {CANARY}")
    await classify(agent, "zorblax")
    await classify(owner, "Teleporter hums")
    assert CANARY not in str(model.asked)
    assert "Heisenberg" in model.prompts()[-1] and "Heisenberg" not in model.prompts()[0]


def passage(number: int, **more: Any) -> dict[str, Any]:
    """Return what a handbook says."""
    return {
        "source": f"KB-{number}", "title": f"Chapter {number}", "text": f"Lubricate part {number}.",
        "score": 1.0 - number / 10, "url": f"https://kb.example.org/{number}", **more,
    }  # fmt: skip


async def test_the_best_passages_come_first_and_not_too_many(
    desk: Live, model: FakeOllama, handbook: Handbook
) -> None:
    """S4-20, S4-60: at most K reach the prompt, the relevant one first; each is named."""
    handbook.holds(*[passage(number) for number in (5, 3, 8, 1, 2, 7)])
    found = await classify(desk.admin, "Squeaky gears")
    [prompt] = model.prompts()
    assert re.findall(r"Lubricate part (\d)", prompt) == ["1", "2", "3", "5"]
    assert [one["source"] for one in found["sources"]] == ["KB-1", "KB-2", "KB-3", "KB-5"]
    assert found["sources"][0] == {
        "source": "KB-1", "title": "Chapter 1", "url": "https://kb.example.org/1",
    }  # fmt: skip
    [(name, query)] = handbook.asked()
    assert name == (await desk.admin.get("/users/me")).json["name"] and "Squeaky" in query


async def test_knowledge_that_is_off_is_none(
    desk: Live, model: FakeOllama, handbook: Handbook
) -> None:
    """S4-18: what is switched off says nothing; passages without a score are none either."""
    handbook.holds(passage(1), mode="off")
    assert (await classify(desk.admin, "Squeaky gears"))["sources"] == []
    handbook.holds(passage(1, score=0.0))
    assert (await classify(desk.admin, "Squeaky gears"))["sources"] == []
    assert "Lubricate" not in str(model.asked)


@pytest.mark.parametrize("mode", ["hang", "fail"])
async def test_knowledge_that_is_out_is_not_waited_for(
    desk: Live, model: FakeOllama, handbook: Handbook, mode: str
) -> None:
    """R62: the model answers without it, and what the desk itself knows stays."""
    owner = await desk.person()
    await solved(desk, owner, f"Squirrel cage fan {mode}", "Fed the squirrel")
    handbook.holds(passage(1), mode=mode)
    found = await classify(owner, f"Squirrel cage fan {mode}")
    assert found["source"] == "ollama" and len(found["sources"]) == 1
    assert "Fed the squirrel" in model.prompts()[0]


async def test_without_a_model_that_answers_nothing_is_looked_up(
    live: Live, handbook: Handbook
) -> None:
    """S4-18, S4-60: rules ask nobody."""
    handbook.holds(passage(1))
    found = await classify(live.admin, "Squeaky gears")
    assert found["source"] == "rules" and found["sources"] == [] and handbook.asked() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": None},
        {"score": "high"},
        {"score": None},
        {"score": 10**400},
        {"source": 7},
        {"title": ["a"]},
        {"url": 5},
    ],
    ids=lambda wrong: str(wrong)[:20],
)
async def test_passages_that_are_none_cost_nothing_but_themselves(
    desk: Live, model: FakeOllama, handbook: Handbook, wrong: dict[str, Any]
) -> None:
    """S-36: what a plugin says is looked at like a stranger's word; the model is asked without."""
    handbook.holds(passage(2, **wrong), passage(1))
    found = await classify(desk.admin, "Squeaky gears")
    assert found["source"] == "ollama"
    assert [one["source"] for one in found["sources"]] == ["KB-1"]


async def test_an_address_that_runs_something_is_none(
    desk: Live, model: FakeOllama, handbook: Handbook
) -> None:
    """S-36: a client may make a link of it."""
    bad = ["javascript:alert(1)", "data:text/html,x", 'https://a"onclick=x', "//\x00", "", "x"]
    handbook.holds(*[passage(n, url=url, score=0.9) for n, url in enumerate(bad[:4])])
    found = await classify(desk.admin, "Squeaky gears")
    assert [one["url"] for one in found["sources"]] == [None] * 4


async def test_passages_are_text_between_marks(
    desk: Live, model: FakeOllama, handbook: Handbook
) -> None:
    """S-36: markup, links and unseen characters of a passage reach neither prompt nor answer."""
    handbook.holds(
        passage(
            1,
            source="KB<script>",
            title="[x](https://evil.example) \u202etitle",
            text="<b>Bold</b>\x00 https://evil.example/\u200b " + "long " * 1000,
        )
    )
    found = await classify(desk.admin, "Squeaky gears")
    [prompt] = model.prompts()
    for bad in ("<", "https://", "\u202e", "\u200b", "\x00"):
        assert bad not in prompt.split("Squeaky gears")[1].replace(found["sources"][0]["url"], "")
        assert bad not in found["sources"][0]["source"] + found["sources"][0]["title"]
    [asked] = model.calls()
    [mark] = set(re.findall(r"\[([0-9a-f]{16}) ", asked.body["prompt"]))
    assert f"[{mark} ...]" in asked.body["system"] and len(asked.body["prompt"]) < 2000


# --- S-36: a malicious model ---------------------------------------------------------------------


async def snapshot(desk: Live) -> Any:
    """Return every ticket with its history; a change of any kind raises a ticket's version."""
    tickets = (await desk.admin.get("/tickets?limit=200")).expect(200)
    histories = [
        (await desk.admin.get(f"/tickets/{one['key']}/history")).expect(200) for one in tickets
    ]
    return tickets, histories


async def test_80_injections_and_a_model_that_obeys_them(desk: Live, model: FakeOllama) -> None:
    """S-36: schema-valid; 0 canaries of unreadable tickets; nothing but the answer changes."""
    victim, attacker = await desk.person(), await desk.person()
    agent = await desk.person("agent")
    hidden = await solved(desk, victim, f"Payroll {CANARY}", f"The password was {CANARY}")
    secret = {"body": f"{CANARY} said the boss", "internal": True}
    (await agent.post(f"/tickets/{hidden['key']}/comments", secret)).expect(201)
    texts = [
        f"{ORDERS[n % 10] % hidden if '%(' in ORDERS[n % 10] else ORDERS[n % 10]} payroll"
        for n in range(80)
    ]
    own = [await attacker.ticket(f"Printer {n}", description=texts[n]) for n in range(8)]
    for ticket, text in zip(own, texts[8:], strict=False):
        (await attacker.post(f"/tickets/{ticket['key']}/comments", {"body": text})).expect(201)
    before = await snapshot(desk)
    for start in range(0, 80, 10):
        asks = []
        for number in range(start, start + 10):
            numbered = f"({number}) {texts[number]} {own[number % 8]['key']}"
            asks += [_attacked(attacker, numbered, number)]
        model.says = lambda prompt, schema: malice(_number(prompt), prompt, schema, hidden["key"])
        await asyncio.gather(*asks)
    assert len(model.calls()) == 160
    assert CANARY not in str(model.asked)
    assert await snapshot(desk) == before


def _number(prompt: str) -> int:
    found = re.findall(r"\((\d+)\)", prompt)
    return int(found[-1]) if found else 0


async def _attacked(attacker: Person, text: str, number: int) -> None:
    """Ask for everything with an injected text, and look at all that comes back."""
    found = await attacker.post("/ai/classify", {"title": f"({number}) help", "description": text})
    body = found.expect(200)
    assert CANARY not in found.raw.decode()
    assert body["priority"] in ("low", "medium", "high", "critical")
    assert 2 <= len(body["recommendations"]) <= 4
    for one in body["recommendations"]:
        is_text(one)
    stream = number % 3 == 0
    asked = {"messages": [{"role": "user", "content": text}], "stream": stream}
    answer = await attacker.post("/ai/chat", asked)
    assert answer.status == 200 and CANARY not in answer.raw.decode()
    *previews, last = [orjson.loads(line) for line in answer.raw.splitlines()]
    is_text("".join(one["text"] for one in previews))
    if stream:
        assert last.pop("type") == "answer"
    is_answer(last)
