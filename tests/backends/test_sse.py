"""What is passed on of a stream of events, however it is cut into pieces."""

from __future__ import annotations

import pytest

from llm_diffusiongemma.backends.sse import DataOnly

STREAM = (
    b"\xef\xbb\xbf: hello\n\nid: 1\nevent: x\ndata: {\ndata:}\n\n: waiting\n\nretry: 5\n\n\n"
    b"data: \xc2\x85\xe2\x80\xa8\n\nid: 2\n\n"
)
DATA = b"data: {\ndata:}\n\ndata: \xc2\x85\xe2\x80\xa8\n\n"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_only_data_is_passed_on(line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    for size in range(1, len(stream) + 1):
        events = DataOnly()
        pieces = [events.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
        assert b"".join(pieces) + events.end() == DATA
        assert events.num_bytes == 0


def test_an_event_is_counted_to_its_end() -> None:
    events = DataOnly()
    events.feed(b": a long comment\n" * 100 + b"data: {\ndata")
    assert events.num_bytes == len(b"data: {data")
    events.feed(b": }\n\n")
    assert events.num_bytes == 0
