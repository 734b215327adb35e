"""Heads of forms and their parts, as people's programs write them."""

from typing import Optional

import pytest

from vllm_bridge.errors import BadRequestError
from vllm_bridge.http1.part_head import boundary_of, part_head

NAME = "Content-Disposition: form-data; name=\"file\"; "
WAV = NAME + "filename=\"a.wav\""

# As Starlette 1.10 reads them, with python-multipart 0.0.34.
FILE_NAMES = [
    (b'filename="a"b.wav"', 'a"b.wav'), (b'filename="say "hi" now.wav"', 'say "hi" now.wav'),
    (b'filename="a"; b.wav"', "a"), (b'filename="a;b.wav"', "a;b.wav"), (b'filename="a;"b";c.wav"', 'a;"b";c.wav'),
    (b'filename="\xe9.wav"', "\xe9.wav"), (b'filename="\xc2\xbc\xd2\xf4.wav"', "\xc2\xbc\xd2\xf4.wav"),
    (b'filename="\x95\\.wav"', "\x95\\.wav"), (b'filename="\x81\\"', "\x81\\"),
    ('filename="录音.wav"'.encode(), "录音.wav"), ("filename=录音.wav".encode(), "录音.wav"),
    (b"filename=a.wav", "a.wav"), (b"filename=my file.wav", "my file.wav"), (b'filename=a"b.wav', 'a"b.wav'),
    (b"filename=\xe9.wav", "\xe9.wav"), (b"filename=a,b.wav", "a,b.wav"), (b"filename='a.wav'", "'a.wav'"),
    (b"filename=", ""), (b'filename=""', ""), (b"filename", ""), (b'filename="', '"'), (b'filename="a.wav', '"a.wav'),
    (b'filename="a.wav" junk', '"a.wav" junk'), (b'filename="a.wav";', "a.wav"), (b'; filename="a.wav"; x', "a.wav"),
    (b'FileName = "a.wav"; size=4', "a.wav"), (b'filename="a.wav"; filename="b.wav"', "b.wav"),
    (b'filename="a\\"b.wav"', 'a"b.wav'), (b'filename="a\\\\b.wav"', "a\\b.wav"), (b'filename="x\\"', "x\\"),
    (b'filename="C:\\dir\\x.wav"', "x.wav"), (b'filename="\\\\host\\x.wav"', "\\host\\x.wav"),
    (b'filename="a%22b"', "a%22b"),
    (b"filename=\"plain.wav\"; filename*=UTF-8''%e2%82%ac.wav", "plain.wav"), (b"", None),
]
# RFC 8187 §3.2.1, and what is left of those that are none.
EXTENDED = [
    (b"filename*=UTF-8''%e2%82%ac.wav", "€.wav"), (b"filename*=utf-8'en'a%20b.wav", "a b.wav"),
    (b"filename*=\"UTF-8''a%20b.wav\"", "a b.wav"), (b"filename*=iso-8859-1''%e9.wav", "é.wav"),
    (b"filename*=GBK'zh'%c2%bc.wav", "录.wav"), (b"filename*=Shift_JIS''%95%5c.wav", "表.wav"),
    ("filename*=UTF-8''é's.wav".encode(), "é's.wav"), (b"filename*=x-klingon''%c2.wav", "\xc2.wav"),
    (b"filename*=utf-8''%e9.wav", "\xe9.wav"), (b"filename*=a%20b.wav", "a b.wav"), (b"filename*=''%c3%a9", "é"),
    (b"filename*=punycode''99-x", "99-x"), (b"filename*=hex''61", "61"), (b"filename*=\xff''61", "61"),
]


@pytest.mark.parametrize("given, filename", FILE_NAMES + EXTENDED)
def test_file_names(given: bytes, filename: Optional[str]) -> None:
    assert part_head(NAME.encode() + given) == ("file", filename, None)


@pytest.mark.parametrize("lines, expected", [
    (WAV + "\r\n" + WAV.replace("a.wav", "b.wav"), ("file", "b.wav", None)),
    (WAV + "\r\n" + NAME, ("file", None, None)),
    ("Content-Disposition: form-data; filename=\"say \"hi\" now\"; name=\"file\"", ("file", "say \"hi\" now", None)),
    (WAV + "\r\nContent-Type: audio/wav\r\ncontent-type: audio/mpeg", ("file", "a.wav", "audio/wav")),
    (WAV + "\r\nX: 1\r\nX: 2\r\nContent-Length: 4\r\nContent-Length: 4", ("file", "a.wav", None)),
    (WAV + "\r\nContent-Transfer-Encoding: binary\r\nContent-Transfer-Encoding: 8bit", ("file", "a.wav", None)),
    ("X-Own: \xe9\r\n" + WAV + "\r\nContent-Type: audio/\xe9", ("file", "a.wav", "audio/\xe9")),
])
def test_headers_that_come_twice(lines: str, expected: object) -> None:
    assert part_head(lines.encode("latin-1")) == expected


@pytest.mark.parametrize("lines", [
    "Content-Disposition: form-data; name=\"model\"\r\n" + WAV, WAV + "\r\nContent-Disposition: form-data",
    "Content-Disposition: form-data; name=\"a\"; name=\"a\"", "Content-Disposition: form-data; name=\"fi\"le\"",
    "Content-Disposition: form-data; name=\"file; filename=\"a.wav\"", "Content-Disposition: form-data; name=",
    "Content-Disposition: form-data; filename=\"a\"; name=\"file\"; x=\"b\"; name=\"model\"",
    "Content-Disposition: form-data; filename=\"a; name=\"file\"", "Content-Disposition: form-data; name=my file",
    "Content-Disposition: form-data; name*=UTF-8''file", "Content-Disposition: form-data; name=\"\xe9\"",
    "Content-Disposition: attachment; name=\"file\"", "Content-Disposition: name=\"file\"", "X: y",
    WAV + "\r\nContent-Transfer-Encoding: binary\r\nContent-Transfer-Encoding: base64",
    WAV + "\r\nX: \0", WAV + "\r\nno colon", WAV + "\r\n folded: x",
])
def test_names_of_fields_are_read_in_one_way_only(lines: str) -> None:
    with pytest.raises(BadRequestError, match="^invalid multipart body: "):
        part_head(lines.encode("latin-1"))


@pytest.mark.parametrize("content_type", [
    "multipart/form-data; boundary=\"b\"c\"", "multipart/form-data; boundary=b; BOUNDARY=b",
    "multipart/form-data; x=\"; boundary=b", "multipart/form-data; boundary",
])
def test_a_boundary_too(content_type: str) -> None:
    with pytest.raises(BadRequestError, match="boundary"):
        boundary_of(content_type)
    assert boundary_of("multipart/form-data; foo; boundary=b ") == b"b"
