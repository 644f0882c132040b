"""What passes between server and worker: the same message on the other side, or an error."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwaga.errors import WireError
from hwaga.server import wire

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
MESSAGES = st.one_of(
    st.builds(wire.Open, *[st.none() | TEXT] * 6, st.integers(), st.booleans()),
    st.builds(wire.Ready, TEXT, TEXT),
    st.builds(wire.Loading),
    st.builds(
        wire.Draw, TEXT, st.integers(), st.dictionaries(TEXT, JSON, max_size=3), st.booleans(), st.binary(max_size=100)
    ),
    st.builds(wire.Cancel, TEXT, st.integers()),
    st.builds(wire.Progress, TEXT, *[st.integers()] * 4, st.binary(max_size=100)),
    st.builds(wire.Picture, TEXT, st.binary(min_size=1, max_size=100)),
    st.builds(wire.Finished, TEXT),
    st.builds(wire.Failed, TEXT, TEXT, TEXT),
    st.builds(wire.Stopped, TEXT),
    st.builds(wire.DeviceMemory, *[st.integers()] * 3),
    st.builds(wire.Plan, st.dictionaries(TEXT, st.integers() | TEXT)),
)


def receive_async(data: bytes) -> list[wire.Message]:
    async def read() -> list[wire.Message]:
        stream, messages = asyncio.StreamReader(), []
        stream.feed_data(data)
        stream.feed_eof()
        while (message := await wire.receive_async(stream)) is not None:
            messages.append(message)
        return messages

    return asyncio.run(read())


def receive(data: bytes) -> list[wire.Message]:
    stream, messages = io.BytesIO(data), []
    while (message := wire.receive(stream)) is not None:
        messages.append(message)
    return messages


def frame(values: object, data: bytes = b"") -> bytes:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack(">II", len(text), len(data)) + text + data


@given(st.lists(MESSAGES, max_size=5))
def test_messages_arrive_as_they_were_sent(messages: list[wire.Message]) -> None:
    data = b"".join(wire.encode(message) for message in messages)
    assert receive(data) == messages
    assert receive_async(data) == messages


@given(MESSAGES, st.integers(0, 300))
def test_a_stream_that_ends_early_has_ended(message: wire.Message, cut: int) -> None:
    data = wire.encode(message)
    assert receive(data[: min(cut, len(data) - 1)]) == []
    assert receive_async(data[: min(cut, len(data) - 1)]) == []


@pytest.mark.parametrize(
    "data",
    [
        frame({"kind": "Execute"}),
        frame({"kind": ["Finished"]}),
        frame({"kind": "Cancel", "job": "a"}),
        frame({"kind": "Cancel", "job": "a", "attempt": "1"}),
        frame({"kind": "Cancel", "job": "a", "attempt": True}),
        frame({"kind": "Cancel", "job": "a", "attempt": 1.0}),
        frame({"kind": "Cancel", "job": None, "attempt": 1}),
        frame({"kind": "Cancel", "job": "a", "attempt": 1, "more": 1}),
        frame({"kind": "Cancel", "job": "a", "attempt": 1}, b"data"),
        frame({"kind": "Progress", "step": 1, "total": 2, "data": "text"}),
        frame({"kind": "Draw", "job": "a", "attempt": 1, "body": []}),
        frame({"kind": "Picture"}),
        frame({}),
        frame([]),
        frame(1),
        frame(b""),
        frame(b"{"),
        frame(b'{"kind": "Finished"} {}'),
        frame(b"\xff\xfe"),
        frame(b"[" * 100_000),
        frame(b'{"kind": "Cancel", "job": "a", "attempt": ' + b"9" * 10_000 + b"}"),
        struct.pack(">II", wire.MAX_JSON + 1, 0),
        struct.pack(">II", 2, 2**32 - 1) + b"{}",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_is_malformed_is_an_error(data: bytes) -> None:
    for read in (receive, receive_async):
        with pytest.raises(WireError):
            read(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_an_end_or_an_error(data: bytes) -> None:
    for read in (receive, receive_async):
        with contextlib.suppress(WireError):
            read(frame(data) + data)


def test_what_is_too_large_is_not_sent() -> None:
    with pytest.raises(WireError, match="too large"):
        wire.encode(wire.Draw("a", 1, {"request": {"prompt": "x" * wire.MAX_JSON}}))


def test_a_peer_that_dies_with_messages_unread_is_an_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, ours.makefile("rb") as stream:
        ours.sendall(wire.encode(wire.Finished("1")))
        theirs.close()  # the system then says that the connection was reset
        assert wire.receive(stream) is None
