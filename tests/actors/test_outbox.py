"""An outbox sends in order, waits within its bounds, and gives a slow client up beyond them."""

import asyncio

import pytest

from itdesk.actors.outbox import Bounds, Outbox


class Transport:
    """The end of a socket: takes bytes until it is told to be full."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        """Take what is sent."""
        self.written.append(data)

    def is_closing(self) -> bool:
        """Tell whether the socket is being closed."""
        return self.closing


class Socket:
    """A connection whose client reads, or does not."""

    def __init__(self) -> None:
        self.transport: Transport | None = Transport()
        self.writing_paused = False
        self.overflows = 0

    def overflow(self) -> None:
        """Count that the client was given up."""
        self.overflows += 1

    @property
    def written(self) -> list[bytes]:
        """Return what went out."""
        assert self.transport is not None
        return self.transport.written


@pytest.fixture(name="socket")
def _socket() -> Socket:
    return Socket()


def test_frames_go_straight_to_a_client_that_reads(socket: Socket) -> None:
    outbox = Outbox(socket, Bounds(1, 10), socket.overflow)
    assert all(outbox.put(b"x" * 100) for _ in range(50))
    assert len(socket.written) == 50 and outbox.waiting == (0, 0)


def test_what_waits_goes_out_in_order_when_the_client_reads_again(socket: Socket) -> None:
    outbox = Outbox(socket, Bounds(10, 100), socket.overflow)
    socket.writing_paused = True
    assert outbox.put(b"a") and outbox.put(b"bc", 2)
    assert outbox.waiting == (3, 3) and socket.written == []
    socket.writing_paused = False
    # Although the socket takes bytes again, nothing may overtake what waits.
    assert outbox.put(b"d")
    outbox.resume()
    assert socket.written == [b"a", b"bc", b"d"] and outbox.waiting == (0, 0)


@pytest.mark.parametrize(("bounds", "fit"), [(Bounds(3, 1000), 3), (Bounds(1000, 25), 2)])
def test_a_client_beyond_a_bound_is_given_up_p_05(socket: Socket, bounds: Bounds, fit: int) -> None:
    outbox = Outbox(socket, bounds, socket.overflow)
    socket.writing_paused = True
    assert [outbox.put(b"x" * 10) for _ in range(fit + 2)] == [True] * fit + [False] * 2
    assert socket.overflows == 1 and outbox.closed and outbox.waiting == (0, 0)
    socket.writing_paused = False
    outbox.resume()
    assert socket.written == []


def test_nothing_is_written_to_a_socket_that_is_closed(socket: Socket) -> None:
    outbox = Outbox(socket, Bounds(), socket.overflow)
    assert socket.transport is not None
    socket.transport.closing = True
    assert not outbox.put(b"a") and socket.written == []
    socket.transport = None
    assert not outbox.put(b"a") and socket.overflows == 0


async def test_room_waits_until_nothing_waits(socket: Socket) -> None:
    outbox = Outbox(socket, Bounds(), socket.overflow)
    await outbox.room()
    socket.writing_paused = True
    outbox.put(b"a")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(outbox.room())
        await asyncio.wait({waiting}, timeout=0)
        assert not waiting.done()
        socket.writing_paused = False
        outbox.resume()
    socket.writing_paused = True
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(outbox.room())
        group.create_task(asyncio.to_thread(int)).add_done_callback(lambda _: outbox.stop())


async def test_room_is_there_for_all_who_wait_for_it(socket: Socket) -> None:
    """A replay and the chats of one client; whoever comes later takes nobody's place."""
    outbox = Outbox(socket, Bounds(), socket.overflow)
    socket.writing_paused = True
    outbox.put(b"a")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = [group.create_task(outbox.room()) for _ in range(3)]
        await asyncio.wait(waiting, timeout=0)
        socket.writing_paused = False
        outbox.resume()
