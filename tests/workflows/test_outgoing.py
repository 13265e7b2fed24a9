"""What the desk calls of its own accord: checked where it is connected to, and never for long."""

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network

import pytest

from itdesk.errors import Unavailable
from itdesk.runtime.addresses import may_be_called
from itdesk.runtime.outgoing import AddressRefused, Outgoing
from tests.support.sink import Sink, sinking

LOCAL = (ip_network("127.0.0.0/8"),)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """Somebody on this machine."""
    async with sinking() as sink:
        yield sink


async def test_a_name_that_means_this_machine_is_refused_when_connected(sink: Sink) -> None:
    """S: what a name means is looked at where it is used; `localhost` reaches nothing."""
    port = sink.url.split(":")[2].partition("/")[0]
    outgoing = Outgoing((), seconds=5)
    try:
        for host in ("localhost", "127.0.0.1"):
            with pytest.raises(AddressRefused):
                await outgoing.post(f"http://{host}:{port}/", b"{}", {})
    finally:
        await outgoing.close()
    assert sink.told == []
    allowed = Outgoing(LOCAL, seconds=5)
    try:
        assert (await allowed.post(f"http://localhost:{port}/", b"{}", {})).status == 204
    finally:
        await allowed.close()


async def test_a_redirect_is_not_followed_and_cookies_are_not_kept(sink: Sink) -> None:
    """One request is one request, whatever the answer says."""
    sink.answers += [(307, {"Location": sink.url, "Set-Cookie": "a=b", "Retry-After": "7"})]
    outgoing = Outgoing(LOCAL, seconds=5)
    try:
        first = await outgoing.post(sink.url, b"{}", {})
        await outgoing.post(sink.url, b"{}", {})
    finally:
        await outgoing.close()
    assert (first.status, first.retry_after, len(sink.told)) == (307, 7.0, 2)
    assert "Cookie" not in sink.told[1].headers


async def test_silence_and_absence_are_outages() -> None:
    """A target that takes the connection and says nothing, one that is not there, and nonsense."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"no http\r\n\r\n")
        writer.close()

    outgoing = Outgoing(LOCAL, seconds=0.3)
    try:
        for talk in (silent, rude):
            async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                with pytest.raises(Unavailable):
                    await outgoing.post(f"http://127.0.0.1:{port}/", b"{}", {})
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.1", 0))
            port = unheard.getsockname()[1]
            with pytest.raises(Unavailable):
                await outgoing.post(f"http://127.0.0.1:{port}/", b"{}", {})
    finally:
        await outgoing.close()


@pytest.mark.parametrize(
    ("address", "may"),
    [("93.184.216.34", True), ("2606:2800:220:1::1", True), ("10.1.2.3", True),
     ("::ffff:10.1.2.3", True), ("192.168.1.1", False), ("127.0.0.1", False), ("::1", False),
     ("169.254.169.254", False), ("fe80::1", False), ("fd00::1", False), ("224.0.0.1", False),
     ("100.64.0.1", False), ("0.0.0.0", False), ("::ffff:127.0.0.1", False),
     ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("ff02::1", False)],
)  # fmt: skip
def test_only_public_addresses_and_named_networks_may_be_called(address: str, may: bool) -> None:
    """The policy: public, and what workflows.target_networks lists, in any way to write it."""
    assert may_be_called(ip_address(address), (ip_network("10.0.0.0/8"),)) is may
