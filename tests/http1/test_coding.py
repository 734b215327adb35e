"""Content-Encoding undone, however the bytes are cut, and never more of it in memory than a block."""

import gzip
import zlib

import pytest

from vllm_bridge.http1 import coding
from vllm_bridge.http1.coding import decoded
from vllm_bridge.http1.head import ProtocolError

TEXT = b"data: x\n\n" * 1000


def bare(data: bytes) -> bytes:
    """Return what is inside zlib's format, which some servers call deflate."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def content(data: bytes, encoding: str, size: int = 65536) -> bytes:
    blocks = iter([data[at:at + size] for at in range(0, len(data), size)])
    read = decoded(lambda: next(blocks, b""), encoding)
    return b"".join(iter(read, b""))


@pytest.mark.parametrize("size", [1, 7, 65536])
@pytest.mark.parametrize("data, encoding", [
    (TEXT, "identity"),
    (gzip.compress(TEXT), "gzip"),
    (gzip.compress(TEXT), " X-GZIP "),
    (gzip.compress(TEXT) + gzip.compress(b"more"), "gzip"),
    (gzip.compress(TEXT) + b"\0\0", "gzip"),
    (zlib.compress(TEXT), "deflate"),
    (bare(TEXT), "deflate"),
    (gzip.compress(gzip.compress(TEXT)), "gzip, gzip"),
    (gzip.compress(zlib.compress(TEXT)), "deflate,gzip"),
    (zlib.compress(gzip.compress(TEXT)), "gzip , identity,\tdeflate"),
    (b"", "gzip"),
])
def test_content_is_unpacked(data: bytes, encoding: str, size: int) -> None:
    expected = b"" if not data else TEXT + (b"more" if data.endswith(gzip.compress(b"more")[-8:]) else b"")
    assert content(data, encoding, size) == expected


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "compress", "", "gzip" + ", gzip" * 5, "x" * 1000])
def test_a_coding_that_nobody_asked_for_is_named(encoding: str) -> None:
    with pytest.raises(ProtocolError, match="Content-Encoding is %s" % encoding[:100]):
        decoded(lambda: b"", encoding)


@pytest.mark.parametrize("data, encoding, message", [
    (gzip.compress(TEXT)[:-10], "gzip", "cut off"),
    (zlib.compress(TEXT)[:-1], "deflate", "cut off"),
    (gzip.compress(gzip.compress(TEXT)[:50]), "gzip, gzip", "cut off"),
    (b"{}", "gzip", "not gzip"),
    (b"x{}", "deflate", "not deflate"),
    (gzip.compress(TEXT)[:20] + b"\xff" * 40, "gzip", "not gzip"),
])
def test_what_is_broken_says_so(data: bytes, encoding: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        content(data, encoding)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_bomb_is_unpacked_block_by_block_and_not_to_its_end(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "_MOST", 5000000)
    packed = bytes(100000000)
    for _ in range(times):
        packed = gzip.compress(packed, 1)
    blocks = iter([packed])
    read = decoded(lambda: next(blocks, b""), ", ".join(["gzip"] * times))
    size = 0
    with pytest.raises(ProtocolError, match="longer than 5000000 bytes"):
        while True:
            block = read()
            assert 0 < len(block) <= 256 * 1024
            size += len(block)
    assert size <= 5000000


def test_a_long_name_is_refused_at_once() -> None:
    """Split by a pattern with white space on both sides of the comma this would take ten seconds."""
    with pytest.raises(ProtocolError, match="nobody asked for"):
        decoded(lambda: b"", "gzip" + " " * 60000 + "x")
    decoded(lambda: b"", "identity \t, identity")
