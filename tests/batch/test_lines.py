"""Lines read in blocks of any size, and how they are known again."""

import io
import json
import random

import pytest

from vllm_bridge.batch.lines import Hashes, key_hash, key_of, line_blocks, text_hash


def reader(data, size):
    file = io.BytesIO(data)
    return lambda most: file.read(min(most, size))


def lines(data, size=65536, longest=1000):
    return [line for block in line_blocks(reader(data, size), longest) for line in block]


@pytest.mark.parametrize("data, found", [
    (b"", []),
    (b"a", [b"a"]),
    (b"a\n", [b"a"]),
    (b"a\n\nb\r\n", [b"a", b"", b"b\r"]),
    (b"\n", [b""]),
    (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", [b"a", b"\xef\xbb\xbfb"]),  # a BOM is one at the beginning alone
    (b"\xef\xbb\xbf", []),
    ("\u2028\u0085\n".encode(), ["\u2028\u0085".encode()]),  # no line ends in JSON
])
@pytest.mark.parametrize("size", [1, 2, 3, 65536])
def test_lines_are_the_same_however_they_come(data, found, size):
    assert lines(data, size) == found


@pytest.mark.parametrize("size", [1, 7, 65536])
def test_a_line_that_is_too_long_is_not_kept(size):
    assert lines(b"x" * 1000 + b"\n" + b"y" * 1001 + b"\nz\n" + b"z" * 2000, min(size, 999)) == [
        b"x" * 1000, None, b"z", None]


def test_utf_16_is_said_and_not_read():
    for data in ("a\n".encode("utf-16"), b"\xfe\xff\0a"):
        with pytest.raises(ValueError, match="convert it to UTF-8"):
            lines(data)


@pytest.mark.parametrize("line, key", [
    (b'{"custom_id": "a", "body": {}}', b"a"),
    (b' {"custom_id":"a b","body":{"custom_id":"c"}}', b"a b"),
    (b'{"body": {"custom_id": "inner"}, "custom_id": "outer"}', b"outer"),
    (b'{"body": {"custom_id": "inner"}}', None),
    (b'{"custom_id": "a", "custom_id": "b"}', b"b"),  # the last one counts, as in any JSON reader
    (b'{"\\u0063ustom_id": "a"}', b"a"),
    (b'{"custom_id": "a", "custom_i\\u0064": "b"}', b"b"),
    ('{"custom_id": "é"}'.encode(), "é".encode()),
    (b'{"custom_id": "\\u00e9\\"\\n"}', 'é"\n'.encode()),
    (b'{"custom_id": "\\ud800"}', None),  # no text
    (b'{"custom_id": 7}', None),
    (b'{"custom_id": "a"', b"a"),
    (b'not "custom_id"', None),
    (b'["custom_id"]', None),
    (b"", None),
])
def test_the_custom_id_of_a_line(line, key):
    assert key_of(line) == key


def test_hashes_are_a_set():
    numbers = random.Random(7)
    values = [numbers.randrange(-2 ** 63, 2 ** 63) for _ in range(5000)]
    hashes = Hashes()
    assert all([hashes.add(value) for value in values]) and not any([hashes.add(value) for value in values])
    assert all(value in hashes for value in values) and 1 not in hashes
    assert key_hash(b"a") == key_hash(b"a") != 0
    assert len(text_hash(b"a")) == 16 and text_hash(b"a") != text_hash(b"b")


def test_a_line_of_any_json_is_known_by_what_a_reader_says():
    numbers = random.Random(3)
    for _ in range(300):
        key = "".join(numbers.choice('a"\\\n\u00e9\u2028 {}:,') for _ in range(numbers.randrange(5)))
        body = {"x": numbers.choice(['"custom_id"', {"custom_id": "z"}, [1], None])}
        line = {"custom_id": key, "body": body} if numbers.random() < 0.5 else {"body": body, "custom_id": key}
        for ascii_only in (True, False):
            assert key_of(json.dumps(line, ensure_ascii=ascii_only).encode()) == key.encode()
