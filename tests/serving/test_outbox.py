"""Credits, drops and the order of what is sent."""

import asyncio

import pytest

from wm_jax.serving.outbox import MAX_MESSAGES, MAX_STEPPED_FRAMES, ClientStalled, EncodedFrame, Outbox, Sending, Spent
from wm_jax.serving.protocol import Ack


def frame(index: int) -> EncodedFrame:
    return EncodedFrame(b"pixels", "raw", 1, 2, index, 33.0 * index, None, None, None, Spent())


async def sent(outbox: Outbox) -> list[tuple[int, int, int]]:
    """Everything that may be sent now: frame_id, seq, dropped."""
    found = []
    while True:
        try:
            async with asyncio.timeout(0.01):
                item = await outbox.next()
        except TimeoutError:
            return found
        assert isinstance(item, Sending)
        head = item.header
        found.append((head.frame_id, head.seq, head.dropped))


def test_without_credit_the_oldest_is_dropped_and_counted():
    async def play():
        outbox = Outbox(credit_window=2)
        for index in range(3):
            outbox.put_frame(frame(index))
            await sent(outbox)
        for index in range(3, 7):
            outbox.put_frame(frame(index))
        assert await sent(outbox) == []
        assert outbox.acknowledge(0)
        return await sent(outbox), outbox.dropped

    assert asyncio.run(play()) == ([(6, 2, 4)], 4)


def test_an_acknowledgement_is_cumulative_and_of_something_sent():
    async def play():
        outbox = Outbox(credit_window=2)
        for index in range(2):
            outbox.put_frame(frame(index))
            await sent(outbox)
        assert not outbox.acknowledge(2)
        assert outbox.acknowledge(1)
        for index in range(2, 4):
            outbox.put_frame(frame(index))
            assert [head[0] for head in await sent(outbox)] == [index]

    asyncio.run(play())


def test_stepped_frames_are_never_dropped_and_fill_up():
    async def play():
        outbox = Outbox(credit_window=None)
        for index in range(MAX_STEPPED_FRAMES):
            assert not outbox.is_full
            outbox.put_frame(frame(index))
        assert outbox.is_full
        return await sent(outbox), outbox.dropped

    found, dropped = asyncio.run(play())
    assert [head[0] for head in found] == list(range(MAX_STEPPED_FRAMES))
    assert dropped == 0


def test_messages_go_before_frames():
    async def play():
        outbox = Outbox(credit_window=2)
        outbox.put_frame(frame(0))
        outbox.put(Ack(event_id=1, applied_at_frame=0))
        return await outbox.next(), await outbox.next()

    first, second = asyncio.run(play())
    assert isinstance(first, Ack) and isinstance(second, Sending)


def test_a_client_that_asks_and_never_reads_is_found_out():
    async def play():
        outbox = Outbox(credit_window=2)
        for index in range(MAX_MESSAGES + 1):
            outbox.put(Ack(event_id=index, applied_at_frame=0))
        with pytest.raises(ClientStalled):
            await outbox.next()

    asyncio.run(play())
