"""Tests of the plugin example, on a whole desk with a database of its own: run `pytest`."""

import asyncio
from pathlib import Path

import pytest

from itdesk.errors import DeskError
from itdesk.workbench import workbench

HERE = Path(__file__).parent
CONFIG = """
[plugins.example]
greeting = "Good morning"
"""


async def _tickets() -> None:
    async with workbench(CONFIG, directory=HERE) as bench:
        plugin = bench.plugin("example")
        alice = await bench.person()
        ticket = await bench.ticket(alice, "The printer is out of paper")
        await bench.settle()
        (line,) = plugin.greeted
        assert line.startswith(f"Good morning {ticket.id}")
        with pytest.raises(DeskError, match="Say what is wrong"):
            await bench.ticket(alice, "help")
        await bench.settle()
        assert len(plugin.greeted) == 1
        assert bench.problems() == {}
        # It goes and comes while the desk works; what is queued waits for it.
        await bench.ticket(alice, "The printer is on fire")
        assert await bench.switch("example", enabled=False) == "off"
        await bench.ticket(alice, "help")
        await bench.settle()
        assert await bench.switch("example", enabled=True) == "loaded"
        await bench.settle()
        assert len(bench.plugin("example").greeted) == 1


def test_new_tickets_are_greeted_and_bad_ones_refused() -> None:
    asyncio.run(_tickets())
