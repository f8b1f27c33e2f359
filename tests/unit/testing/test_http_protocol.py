from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.testing import http_protocol
from lazystore.testing.http_protocol import Answer, BadRequest, body_length, parse_request, piece_size


def test_a_request_is_read_and_its_length_known():
    raw = b"GET /b/k?x=1 HTTP/1.1\r\nHost: h\r\nRange:bytes=0-1\r\nEmpty:\r\n\r\nrest"
    parsed = parse_request(bytearray(raw))
    assert parsed is not None
    request, length = parsed
    assert raw[length:] == b"rest"
    assert (request.method, request.target, request.keep_alive) == ("GET", "/b/k?x=1", True)
    assert request.headers == {"host": "h", "range": "bytes=0-1", "empty": ""}


@given(st.integers(0, 60))
def test_an_incomplete_head_waits_for_more(length):
    raw = b"GET /b/k HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n"
    assert (parse_request(bytearray(raw[:length])) is None) == (length < len(raw))


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("HTTP/1.1", "", True),
        ("HTTP/1.1", "Close", False),
        ("HTTP/1.0", "", False),
        ("HTTP/1.0", "Keep-Alive", True),
    ],
)
def test_connections_are_kept_as_the_client_says(version, connection, kept):
    parsed = parse_request(bytearray(f"GET / {version}\r\nConnection: {connection}\r\n\r\n".encode()))
    assert parsed is not None
    assert parsed[0].keep_alive is kept


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(raw):
    with pytest.raises(BadRequest) as caught:
        parse_request(bytearray(raw))
    assert caught.value.status == 400


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused_or_incomplete(raw):
    try:
        parsed = parse_request(bytearray(raw + b"\r\n\r\n"))
    except BadRequest:
        return
    assert parsed is not None
    assert parsed[1] <= len(raw) + 4


def test_a_head_without_end_is_refused():
    with pytest.raises(BadRequest) as caught:
        parse_request(bytearray(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000))
    assert caught.value.status == 431


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"transfer-encoding": "chunked"}, 411),
        ({"content-length": "-1"}, 400),
        ({"content-length": "\u00b2"}, 400),
        ({"content-length": "1048577"}, 413),
        ({"content-length": "9" * 5000}, 413),
    ],
)
def test_bodies_that_will_not_be_read_are_refused(headers, status):
    with pytest.raises(BadRequest) as caught:
        body_length(headers)
    assert caught.value.status == status


@given(st.integers(0, 2048), st.booleans())
def test_pieces_of_all_bodies_stay_within_the_memory_bound(bodies, paced):
    size = piece_size(bodies, paced)
    assert http_protocol.MIN_PIECE <= size <= http_protocol.MAX_PIECE
    assert size * bodies <= http_protocol.MAX_BODY_MEMORY


@given(st.binary(max_size=50), st.integers(1, 20))
def test_a_body_from_memory_comes_in_pieces(body, size):
    answer = Answer(b"", body)
    pieces = []
    while answer.begin < answer.end:
        pieces.append(answer.read(size))
    assert b"".join(pieces) == body
    assert all(0 < len(piece) <= size for piece in pieces)
