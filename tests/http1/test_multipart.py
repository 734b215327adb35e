"""Forms sent and received: RFC 7578, RFC 2046, and email.parser as the peer."""

import email.parser
import email.policy
import http.server
import io
import os
import tempfile
import threading

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge.http1 import multipart
from vllm_bridge.errors import BadRequestError
from vllm_bridge.http1.multipart import FilePart, MultipartBody, MultipartReader

TYPE = "multipart/form-data; boundary=b"


def peer(content_type, body):
    """The parts as Python's own parser reads them: name, file name, content type, bytes."""
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts = []
    for part in message.iter_parts():
        disposition = part["content-disposition"].params
        has_type = part["content-type"] is not None
        parts.append((disposition["name"], disposition.get("filename"),
                      str(part["content-type"]).strip() if has_type else None, part.get_payload(decode=True)))
    return parts


def receive(content_type, *blocks, **limits):
    """Feed the blocks and return the parts with files read."""
    files = []

    def spool():
        files.append(io.BytesIO())
        return files[-1]

    try:
        reader = MultipartReader(content_type, spool=spool, **limits)
        for block in blocks:
            reader.feed(block)
        parts = reader.finish()
    except BadRequestError:
        assert all(file.closed for file in files)
        raise
    return [(part.name, part.filename, part.content_type,
             part.value if part.filename is None else part.value.read()) for part in parts]


def whole(*parts, **arguments):
    """Send fields and a file, and return what the peer reads."""
    body = MultipartBody(*parts, **arguments)
    sent = body.read()
    assert len(sent) == len(body)
    return peer(body.content_type, sent)


# ---------------------------------------------------------------- sending


def test_a_body_to_the_letter():
    body = MultipartBody([("model", "w"), ("x[]", "é")],
                         FilePart("file", b"DATA", filename="a.wav", content_type="audio/wav"), boundary="b")
    assert body.content_type == TYPE
    assert body.read() == (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nw\r\n'
        b'--b\r\nContent-Disposition: form-data; name="x[]"\r\n\r\n\xc3\xa9\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        b"DATA\r\n--b--\r\n")


def test_a_form_without_a_file():
    assert whole([("a", "1"), ("a", ""), ("b", "\r\n")]) == [
        ("a", None, None, b"1"), ("a", None, None, b""), ("b", None, None, b"\r\n")]


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10 ** 6])
def test_reading_in_any_size_gives_the_same(size, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(3000))
    with open(path, "rb") as file:
        for content in (file, io.BytesIO(path.read_bytes()), path.read_bytes()):
            body = MultipartBody([("a", "1")], FilePart("file", content, filename="a"), boundary="b")
            blocks = list(iter(lambda: body.read(size), b""))
            assert max(map(len, blocks)) <= size
            assert body.read(size) == body.read() == b""
            body.rewind()
            assert not any(body.read(0) for _ in iter(lambda: body.read(50), b""))
            body.rewind()
            assert b"".join(blocks) == b"".join(body)
            assert peer(TYPE, b"".join(blocks))[1] == ("file", "a", "application/octet-stream", path.read_bytes())


def test_a_file_goes_up_whole_wherever_it_stands():
    for file in (io.BytesIO(b"0123456789"), tempfile.SpooledTemporaryFile()):
        with file:
            file.write(b"0123456789")
            assert whole([], FilePart("file", file, filename="a"))[0][3] == b"0123456789"
            file.seek(5)
            body = MultipartBody([], FilePart("file", file, filename="a"))
            assert peer(body.content_type, body.read())[0][3] == b"0123456789"
            body.close()
            assert not file.closed


def test_a_file_is_never_read_whole():
    class Watched(io.BytesIO):
        asked = []

        def read(self, size=-1):
            self.asked.append(size)
            return super().read(size)

    body = MultipartBody([], FilePart("file", Watched(b"x" * 1000000), filename="a"))
    assert sum(map(len, body)) == len(body)
    assert 0 < max(Watched.asked) <= 65536 and min(Watched.asked) > 0


def test_a_pipe_is_spooled_and_can_start_over():
    reading, writing = os.pipe()
    with open(reading, "rb") as file:
        with open(writing, "wb") as other:
            other.write(b"fLaC1234")
        body = MultipartBody([], FilePart("file", file, guess=lambda head: (head[:4].decode(), "audio/flac")))
        first = body.read()
        body.rewind()
        assert body.read() == first
        assert peer(body.content_type, first) == [("file", "fLaC", "audio/flac", b"fLaC1234")]
        assert not file.closed
    body.close()
    body.close()


class Unseekable:
    def __init__(self, *blocks):
        self.blocks = list(blocks)

    def read(self, size=-1):
        block = self.blocks.pop(0) if self.blocks else b""
        if isinstance(block, Exception):
            raise block
        return block


def test_a_large_stream_goes_to_disk_and_leaves_nothing():
    body = MultipartBody([], FilePart("file", Unseekable(*[b"x" * 65536] * 40), filename="a"))
    assert peer(body.content_type, b"".join(body))[0][3] == b"x" * 65536 * 40
    body.close()


@pytest.mark.parametrize("block, error", [("text", BadRequestError), (OSError("gone"), OSError)])
def test_a_stream_that_fails_leaves_nothing(block, error):
    with pytest.raises(error):
        MultipartBody([], FilePart("file", Unseekable(b"x" * 2000000, block), filename="a"))


def test_requests_sends_it_with_its_length():
    body = MultipartBody([("a", "1")], FilePart("file", io.BytesIO(b"DATA"), filename="a"))
    prepared = requests.Request("POST", "http://h/", data=body, headers={"Content-Type": body.content_type}).prepare()
    assert prepared.headers["Content-Length"] == str(len(body))
    assert "Transfer-Encoding" not in prepared.headers
    assert prepared.body is body


def test_a_real_server_receives_it():
    got = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            reader = MultipartReader(self.headers["Content-Type"], spool=tempfile.SpooledTemporaryFile)
            left = got["length"] = int(self.headers["Content-Length"])
            while left:
                block = self.rfile.read(min(left, 10000))
                left -= len(block)
                reader.feed(block)
            got["parts"] = reader.finish()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    content = os.urandom(200000)
    body = MultipartBody([("a", "1")], FilePart("file", io.BytesIO(content), filename="a"))
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server, requests.Session() as session:
        session.trust_env = False
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        reply = session.post("http://127.0.0.1:%d/" % server.server_address[1], data=body, timeout=30,
                             headers={"Content-Type": body.content_type})
        thread.join()
    assert reply.status_code == 204 and got["length"] == len(body)
    field, file = got["parts"]
    assert field == ("a", None, None, b"1")
    with file.value as received:
        assert received.read() == content


@pytest.mark.parametrize("text, wire", [
    ('a"b', "a%22b"), ("a\r\nX-Evil: 1\r\n\r\n", "a%0D%0AX-Evil: 1%0D%0A%0D%0A"), ("a\\", "a%5C"), ("a\0b", "a%00b"),
    ("naïve €.wav", "naïve €.wav"), ("a;b=c", "a;b=c"), ("100%", "100%"),
])
def test_names_cannot_leave_their_quotes(text, wire):
    body = MultipartBody([(text, "v")], FilePart("file", b"x", filename=text), boundary="b").read()
    assert body.count(b"\r\n\r\n") == 2
    assert [(name, filename) for name, filename, _, _ in receive(TYPE, body)] == [(wire, None), ("file", wire)]
    assert ('name="%s"\r\n' % wire).encode() in body


def test_a_file_without_a_name():
    assert whole([], FilePart("file", b"x"))[0] == ("file", "file", "application/octet-stream", b"x")
    assert whole([], FilePart("file", b"", guess=lambda head: ("empty", "a/b")))[0] == ("file", "empty", "a/b", b"")
    own = FilePart("file", b"x", content_type="a/own", guess=lambda head: ("n", "a/b"))
    assert whole([], own)[0] == ("file", "n", "a/own", b"x")


@pytest.mark.parametrize("arguments", [
    {"filename": "a\ud800"},
    {"content_type": "a/b\r\nX-Evil: 1"},
    {"headers": (("X-Evil:", "1"),)},
    {"headers": (("X", "1\n2"),)},
    {"headers": (("X", "\ud800"),)},
])
def test_file_headers_that_cannot_be_sent(arguments):
    with pytest.raises(BadRequestError):
        MultipartBody([], FilePart("file", Unseekable(b"x" * 2000000), **dict({"filename": "a"}, **arguments)))


def test_fields_that_cannot_be_sent():
    for name, value in (("a", "\ud800"), ("\ud800", "a")):
        with pytest.raises(BadRequestError, match="UTF-8") as caught:
            MultipartBody([(name, value)])
        caught.value.message.encode("ascii")


def test_files_that_cannot_be_sent(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe")
    with open(path, encoding="utf-8") as file, pytest.raises(BadRequestError, match="binary mode"):
        MultipartBody([], FilePart("file", file, filename="a"))
    with pytest.raises(BadRequestError, match="closed"):
        MultipartBody([], FilePart("file", file, filename="a"))


def test_another_value_of_a_field():
    with io.BytesIO(b"0123456789") as file:
        body = MultipartBody([("model", "m"), ("a", "1")], FilePart("file", file, filename="a"), boundary="b")
        body.read(150)
        other = body.with_field("model", "another/name é")
        for form, name in ((other, "another/name é"), (body, "m")):
            form.rewind()
            sent = form.read()
            assert len(sent) == len(form)
            assert [value for _, _, _, value in peer(TYPE, sent)] == [name.encode(), b"1", b"0123456789"]


def test_a_file_that_changes_while_it_is_sent():
    file = io.BytesIO(b"x" * 100)
    body = MultipartBody([], FilePart("file", file, filename="a"), boundary="b")
    file.seek(0, 2)
    file.write(b"y" * 100)
    assert len(body.read()) == len(body)
    body.rewind()
    file.truncate(50)
    with pytest.raises(BadRequestError, match="shorter"):
        body.read()


@pytest.mark.parametrize("boundary", ["", "a b", "a" * 71, "a\r\n", 'a"'])
def test_boundaries_that_no_header_can_carry(boundary):
    with pytest.raises(ValueError):
        MultipartBody([], boundary=boundary)


def test_a_boundary_that_needs_quotes():
    body = MultipartBody([("a", "1")], boundary="x:y=z?")
    assert body.content_type == 'multipart/form-data; boundary="x:y=z?"'
    assert receive(body.content_type, body.read()) == [("a", None, None, b"1")]
    assert MultipartBody([]).boundary != MultipartBody([]).boundary


# ---------------------------------------------------------------- receiving


def disposition(text):
    return b"--b\r\nContent-Disposition: form-data; " + text + b"\r\n\r\n"


GOOD = {
    "browser": disposition(b'name="a"') + b"1\r\n" + disposition(b'name="f"; filename="x.wav"').replace(
        b"\r\n\r\n", b"\r\nContent-Type: audio/wav\r\n\r\n") + b"\x00\r\n--\r\n--a\xff\r\n--b--\r\n",
    "repeated": disposition(b'name="a"') + b"1\r\n" + disposition(b'name="a"') + b"2\r\n--b--",
    "empty values": disposition(b'name="a"') + b"\r\n" + disposition(b'name="b"; filename=""') + b"\r\n--b--\r\n",
    "preamble, padding, epilogue": b"pre\r\namble\r\n" + disposition(b'name="a"').replace(b"--b", b"--b \t")
    + b"1\r\n--b--\r\nepilogue --b",
    "almost a boundary": disposition(b'name="a"; filename="x"') + b"\r\n-\r\n--\r\r\n--\r\n--x\n--\r\n--b--\r\n",
    "token name": disposition(b"name=a") + b"1\r\n--b--\r\n",
    "case and space": b'--b\r\ncontent-DISPOSITION:form-data ; NAME="a" ;filename="q"\r\n'
    b"CONTENT-type:\t text/plain \r\n\r\n1\r\n--b--\r\n",
    "escapes": disposition(b'name="a\\"b"') + b"1\r\n--b--\r\n",
    "utf-8": disposition('name="é"; filename="ü €.wav"'.encode()) + b"1\r\n--b--\r\n",
    "other headers": b'--b\r\nX-Own: 1\r\nContent-Disposition: form-data; name="a"\r\n'
    b"Content-Transfer-Encoding: binary\r\n\r\n1\r\n--b--\r\n",
    # As Ruby's and older Java's clients send them (RFC 7578 §4.7 deprecates the header).
    "transfer encodings that change nothing": disposition(b'name="a"').replace(
        b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n") + b"1\r\n"
    + disposition(b'name="f"; filename="x"').replace(
        b"\r\n\r\n", b"\r\ncontent-transfer-encoding: 7Bit\r\n\r\n") + b"2\r\n--b--\r\n",
}


@pytest.mark.parametrize("name", sorted(GOOD))
def test_good_bodies_cut_at_every_byte(name):
    body = GOOD[name]
    expected = receive(TYPE, body)
    assert expected == receive(TYPE, *[body[at:at + 1] for at in range(len(body))])
    for cut in range(len(body) + 1):
        assert receive(TYPE, body[:cut], body[cut:]) == expected
    if name == "utf-8":  # email reads header bytes beyond ASCII as escapes
        assert [part[:2] for part in expected] == [("é", "ü €.wav")]
    elif name == "browser":
        assert expected == peer(TYPE, body) and expected[1][3] == b"\x00\r\n--\r\n--a\xff"
    else:
        assert expected == peer(TYPE, body)


def test_only_crlf_begins_a_boundary():
    # RFC 2046 §5.1.1. email.parser takes a bare LF or CR for a line end as well.
    value = b"1\n--b\n--b--\r--b\r--b--"
    assert receive(TYPE, disposition(b'name="a"') + value + b"\r\n--b--") == [("a", None, None, value)]


def test_the_empty_form():
    assert receive(TYPE, b"--b--\r\n") == []


def test_an_extended_file_name():
    body = disposition(b"name=\"a\"; filename*=UTF-8''%e2%82%ac%20x.wav") + b"1\r\n--b--"
    assert receive(TYPE, body) == peer(TYPE, body) == [("a", "€ x.wav", None, b"1")]
    body = disposition(b"name=\"a\"; filename=\"plain\"; filename*=UTF-8''%e2%82%ac") + b"1\r\n--b--"
    assert receive(TYPE, body)[0][1] == "plain"


BAD = {
    "empty": b"",
    "no boundary in it": b"hello",
    "no end": disposition(b'name="a"') + b"1\r\n",
    "ends in the boundary": disposition(b'name="a"') + b"1\r\n--b",
    "ends in the headers": b'--b\r\nContent-Disposition: form-data; name="a"\r\n',
    "ends in half a mark": disposition(b'name="a"') + b"1\r\n--b-",
    "another boundary": disposition(b'name="a"').replace(b"--b", b"--c") + b"1\r\n--c--\r\n",
    "longer boundary": b"--bcd\r\n\r\n1\r\n--b--\r\n",
    "junk after the boundary": b"--b x\r\n\r\n1\r\n--b--\r\n",
    "half a mark": b"--b-\r\n\r\n1\r\n--b--\r\n",
    "two returns": b"--b\r\r\n\r\n1\r\n--b--\r\n",
    "line feeds alone": disposition(b'name="a"').replace(b"\r\n", b"\n") + b"1\n--b--\n",
    "no headers": b"--b\r\n\r\n1\r\n--b--\r\n",
    "no disposition": b"--b\r\nContent-Type: text/plain\r\n\r\n1\r\n--b--\r\n",
    "no name": disposition(b'filename="a"') + b"1\r\n--b--\r\n",
    "attachment": disposition(b'name="a"').replace(b"form-data", b"attachment") + b"1\r\n--b--\r\n",
    "two names": disposition(b'name="a"; name="b"') + b"1\r\n--b--\r\n",
    "open quote": disposition(b'name="a') + b"1\r\n--b--\r\n",
    "no separator": disposition(b'name="a" filename="b"') + b"1\r\n--b--\r\n",
    "no value": disposition(b"name=") + b"1\r\n--b--\r\n",
    "names that differ": b'--b\r\nContent-Disposition: form-data; name="a"\r\n'
    b'content-disposition: form-data; name="b"\r\n\r\n1\r\n--b--\r\n',
    "folded header": b'--b\r\nContent-Disposition: form-data;\r\n name="a"\r\n\r\n1\r\n--b--\r\n',
    "space before the colon": b'--b\r\nContent-Disposition : form-data; name="a"\r\n\r\n1\r\n--b--\r\n',
    "no colon": b'--b\r\nContent-Disposition: form-data; name="a"\r\njunk\r\n\r\n1\r\n--b--\r\n',
    "NUL in a header": disposition(b'name="a\0"') + b"1\r\n--b--\r\n",
    "bare CR in a header": disposition(b'name="a\rb"') + b"1\r\n--b--\r\n",
    "Latin-1 header": disposition(b'name="\xe9"') + b"1\r\n--b--\r\n",
    "base64": disposition(b'name="a"').replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n")
    + b"MQ==\r\n--b--\r\n",
    "no end after a file": disposition(b'name="a"; filename="x"') + b"1\r\n",
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_bodies_cut_at_every_byte(name):
    body = BAD[name]
    for cut in range(len(body) + 1):
        with pytest.raises(BadRequestError, match="^invalid "):
            receive(TYPE, body[:cut], body[cut:])
    with pytest.raises(BadRequestError):
        receive(TYPE, *[body[at:at + 1] for at in range(len(body))])


@pytest.mark.parametrize("content_type", [
    "", "multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary=""',
    "multipart/mixed; boundary=b", "application/json", "multipart/form-data; boundary=" + "b" * 71,
    "multipart/form-data; boundary=b; boundary=c", "multipart/form-data; boundary=é",
    'multipart/form-data; boundary="b ',
    'multipart/form-data; boundary="b "', "multipart/form-data boundary=b",
])
def test_content_types_that_are_refused(content_type):
    with pytest.raises(BadRequestError, match="Content-Type"):
        receive(content_type, GOOD["browser"])


@pytest.mark.parametrize("content_type", [
    "Multipart/Form-Data; Boundary=b", 'multipart/form-data; charset=utf-8; boundary="b"',
    "multipart/form-data;boundary=b;"])
def test_content_types_that_are_taken(content_type):
    assert receive(content_type, GOOD["browser"]) == receive(TYPE, GOOD["browser"])


LARGE = disposition(b'name="a"') + b"1" * 50 + b"\r\n" + disposition(b'name="f"; filename="x"') + b"2" * 5000


@pytest.mark.parametrize("limits, message", [
    ({"max_fields": 1}, "more than 1 fields"),
    ({"max_files": 0}, "more than 0 files"),
    ({"max_field_bytes": 143}, "exceed 143 bytes together"),
    ({"max_field_bytes": 80}, "exceed 80 bytes together"),
    ({"max_header_bytes": 53}, "headers of a part exceed 53 bytes"),
])
def test_limits(limits, message):
    body = LARGE + b"\r\n--b--\r\n"
    generous = {"max_fields": 2, "max_files": 1, "max_field_bytes": 144, "max_header_bytes": 54}
    assert len(receive(TYPE, body, **generous)) == 2
    for blocks in ([body], [body[at:at + 1] for at in range(len(body))]):
        with pytest.raises(BadRequestError, match=message):
            receive(TYPE, *blocks, **limits)


@pytest.mark.parametrize("start", [b"", b"--b", b"--b\r\nX: ", disposition(b'name="a"')])
def test_an_endless_body_is_not_kept(start):
    reader = MultipartReader(TYPE, spool=io.BytesIO)
    held = 0
    try:
        reader.feed(start)
        for _ in range(100):
            reader.feed(b" " * 65536)
            held = max(held, len(reader._buffer) + len(reader._value))
    except BadRequestError:
        assert start
    assert held < 1200000


def test_an_error_stays():
    reader = MultipartReader(TYPE, spool=io.BytesIO)
    with pytest.raises(BadRequestError):
        reader.feed(b"--bad\r\n")
    for again in (lambda: reader.feed(b"--b--"), reader.finish):
        with pytest.raises(BadRequestError):
            again()


def test_a_full_disk_closes_the_files():
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError("no space left")

    full = Full()
    reader = MultipartReader(TYPE, spool=lambda: full)
    with pytest.raises(OSError, match="no space"):
        reader.feed(LARGE)
    assert full.closed


def test_what_follows_the_end_is_not_read():
    assert receive(TYPE, GOOD["repeated"], b"\r\n" + LARGE) == receive(TYPE, GOOD["repeated"])


names = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, blacklist_characters='"\\%'), min_size=1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(names, st.text(st.characters(blacklist_categories=["Cs"])))), st.binary(max_size=300),
       st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters='"\\'), min_size=1),
       st.integers(1, 50))
def test_what_is_sent_is_received(fields, content, filename, size):
    body = MultipartBody(fields, FilePart("file", io.BytesIO(content), filename=filename, content_type="a/b"))
    blocks = list(iter(lambda: body.read(size), b""))
    expected = [(name, None, None, value.encode()) for name, value in fields]
    expected.append(("file", filename, "a/b", content))
    assert receive(body.content_type, *blocks, max_field_bytes=10 ** 7) == expected


pieces = st.one_of(st.binary(max_size=20), st.sampled_from([
    b"--b", b"\r\n", b"--", b"\r\n--b\r\n", b"--b\r\n", b"\r\n--b--", b"-", b"\r", b"\n", b"\r\n\r\n",
    b": ", b'"', b"\\", b";",
    b"Content-Disposition: form-data; ", b'name="a"', b'filename="x"', disposition(b'name="a"'),
    disposition(b'name="a"; filename="x"')]))


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.lists(pieces, max_size=12), st.integers(1, 9))
def test_any_bytes_and_any_cut(parts, size):
    body = b"--b\r\n" * (len(parts) % 2) + b"".join(parts)

    def outcome(*blocks):
        try:
            return receive(TYPE, *blocks)
        except BadRequestError:
            return "refused"

    assert outcome(body) == outcome(*[body[at:at + size] for at in range(0, len(body), size)])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.one_of(st.text(), st.text().map(lambda text: "multipart/form-data;" + text),
                 st.text().map(lambda text: "multipart/form-data; boundary=" + text)))
def test_any_content_type(content_type):
    try:
        MultipartReader(content_type, spool=io.BytesIO)
    except BadRequestError:
        pass


def test_the_public_names():
    assert sorted(multipart.__all__) == ["FilePart", "MultipartBody", "MultipartReader", "Part"]
