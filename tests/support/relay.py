"""A real clamd behind an address on which everything may happen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.clamd import Clamd, Heard, HostileClamd, hostile


@asynccontextmanager
async def relayed(clamd: Clamd) -> AsyncIterator[HostileClamd]:
    """Lend a way to clamd on which everything may happen: change its `script`."""

    async def forward(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
    ) -> None:
        back, there = await asyncio.open_connection(clamd.host, clamd.port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while piece := await source.read(65536):
                target.write(piece)
                await target.drain()

        there.write(heard.command)
        sending = asyncio.get_running_loop().create_task(pump(reader, there))
        try:
            await pump(back, writer)
        finally:
            sending.cancel()
            there.close()

    async with hostile(forward) as relay:
        yield relay
