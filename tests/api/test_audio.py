"""Transcription forms and replies, against the transcripts audio_* and the upload objects of frameworks."""

import codecs
import gzip
import io
import json
import mmap
import os

import pytest

import wire
from vllm_bridge.api import audio as transcription
from vllm_bridge.errors import BadRequestError, ResponseDecodeError
from vllm_bridge.http1.multipart import Part

WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + b"\x00" * 20


def fields(**asked):
    return transcription.fields(dict({"file": WAV}, **asked))


def sent(file):
    """Return the file name, the content type and the content that a file goes up with."""
    with transcription.form({"file": file}) as body:
        head, _, content = body.read().partition(b"\r\n\r\n")
    tail = ("\r\n--%s--\r\n" % body.boundary).encode()
    assert content.endswith(tail)
    disposition, kind = head.decode().split("\r\n")[1:3]
    return disposition.split('filename="')[1][:-1], kind[len("Content-Type: "):], content[:-len(tail)]


# ---------------------------------------------------------------- request


def test_fields_stand_in_the_order_of_the_specification():
    got = fields(stream=True, include=["logprobs", "usage"], zeta="z", temperature=0.2, response_format="json",
                 timestamp_granularities=["word", "segment"], prompt="p", language="en", model="whisper", seed=1)
    assert got == [
        ("model", "whisper"), ("language", "en"), ("prompt", "p"), ("response_format", "json"),
        ("temperature", "0.2"), ("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment"),
        ("include[]", "logprobs"), ("include[]", "usage"), ("zeta", "z"), ("seed", "1"), ("stream", "true"),
    ]


@pytest.mark.parametrize("name", [name for name in wire.names("audio_") if "_err_" not in name])
def test_recorded_forms_are_made_again(name):
    sent = wire.load(name).request["body"]["multipart_fields"]
    got = fields(**dict(tuple(pair) for pair in sent))
    assert sorted(got) == sorted(tuple(pair) for pair in sent)


@pytest.mark.parametrize("value, text", [
    (True, "true"), (False, "false"), (0.0, "0"), (0.2, "0.2"), (1.0, "1"), (1e-7, "1e-07"),
    (0.1234567890123, "0.1234567890123"), (3, "3"), (10 ** 20, "100000000000000000000"), ("é", "é"), ("", ""),
    ({"a": "é", "b": [1, None]}, '{"a": "é", "b": [1, null]}'), (b"\xc3\xa9", "é"),
])
def test_values_as_text(value, text):
    assert fields(x=value) == [("x", text)]


def test_lists_repeat_and_none_is_omitted():
    assert fields(language=None, x=["a", None, 2], y=[], z=({"k": 1},)) == [("x", "a"), ("x", "2"), ("z", '{"k": 1}')]
    assert fields(timestamp_granularities="word") == [("timestamp_granularities[]", "word")]
    assert fields(**{"include[]": ["a", "b"]}) == [("include[]", "a"), ("include[]", "b")]


@pytest.mark.parametrize("value", [object(), b"\xff", {"k": object()}])
def test_values_that_no_form_can_carry(value):
    with pytest.raises(BadRequestError, match="^x cannot be sent as a form field") as caught:
        fields(x=value)
    assert caught.value.param == "x"


def test_a_path_is_opened_and_closed(tmp_path):
    path = tmp_path / "talk.MP3"
    path.write_bytes(b"ID3....")
    for given in (str(path), path):
        assert sent(given) == ("talk.MP3", "audio/mpeg", b"ID3....")
    for missing in (tmp_path / "missing", tmp_path, "a\0b"):
        with pytest.raises(BadRequestError, match="cannot read"):
            sent(missing)


@pytest.mark.parametrize("file, filename, content_type", [
    ((("a.flac"), b"x"), "a.flac", "audio/flac"),
    (("a.bin", b"x", "audio/x-own"), "a.bin", "audio/x-own"),
    (("noext", bytearray(b"x"), None), "noext", "application/octet-stream"),
    (("a.wav", io.BytesIO(b"x"), "", {}), "a.wav", "application/octet-stream"),
    (memoryview(b"x"), "audio", "application/octet-stream"),
    (io.BytesIO(b"x"), "audio", "application/octet-stream"),
])
def test_the_ways_to_give_a_file(file, filename, content_type):
    assert sent(file) == (filename, content_type, b"x")


class Reader:
    """Somebody's own reader: read(n), and what it is given."""

    def __init__(self, data, **more):
        self.inner = io.BytesIO(data)
        vars(self).update(more)

    def read(self, size=-1):
        return self.inner.read(size)


def refuses(error):
    def seek(*arguments):
        raise error
    return seek


class PoorSeek(Reader):
    def seek(self, offset):
        return self.inner.seek(offset)

    def tell(self):
        return self.inner.tell()


@pytest.mark.parametrize("make", [
    Reader,
    PoorSeek,
    lambda data: Reader(data, seek=refuses(OSError(29, "Illegal seek"))),
    lambda data: Reader(data, seek=refuses(io.UnsupportedOperation("seek"))),
    lambda data: Reader(data, seek=refuses(NotImplementedError())),
    lambda data: Reader(data, seek=lambda *a: None),  # and no tell
    lambda data: io.BufferedReader(io.BytesIO(data)),
    lambda data: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(data))),
], ids=str)
def test_readers_of_every_kind(make):
    assert sent(make(WAV)) == ("audio.wav", "audio/wav", WAV)


def test_a_reader_that_can_only_go_back_is_read_from_its_beginning():
    reader = PoorSeek(WAV)
    reader.read(7)
    assert sent(reader)[2] == WAV


def test_a_pipe_and_a_mapped_file(tmp_path):
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        os.write(writing, WAV)
        os.close(writing)
        assert sent(pipe)[2] == WAV
    (tmp_path / "a.wav").write_bytes(WAV)
    with open(str(tmp_path / "a.wav"), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sent(mapped)[2] == WAV


class Upload:
    """Starlette's UploadFile: async methods, the file under `file`."""

    def __init__(self, data, filename="talk.flac", content_type="audio/x-flac"):
        self.file, self.filename, self.content_type = io.BytesIO(data), filename, content_type

    async def read(self, size=-1):
        return self.file.read(size)

    async def seek(self, offset):
        self.file.seek(offset)


class Storage:
    """Werkzeug's FileStorage: `name` is that of the form's field, all else is the stream's."""

    def __init__(self, data, filename):
        self.stream, self.name, self.filename, self.content_type = io.BytesIO(data), "field", filename, None

    def __getattr__(self, name):
        return getattr(self.stream, name)


@pytest.mark.parametrize("file, filename, content_type", [
    (Upload(b"x"), "talk.flac", "audio/x-flac"),
    (Upload(b"x", None, None), "audio", "application/octet-stream"),
    (("own.wav", Upload(b"x")), "own.wav", "audio/x-flac"),
    (("own.wav", Upload(b"x"), "a/own"), "own.wav", "a/own"),
    (Storage(b"x", "dir/a.ogg"), "a.ogg", "audio/ogg"),
    (Storage(b"x", None), "audio", "application/octet-stream"),
    (Reader(b"x", name="/tmp/b.mp3", content_type="audio/mp3"), "b.mp3", "audio/mp3"),  # Django's UploadedFile
])
def test_the_upload_objects_of_frameworks(file, filename, content_type):
    assert sent(file) == (filename, content_type, b"x")


class Asynchronous:
    async def read(self, size=-1):
        return b"x"


class Awaitable(Asynchronous):
    def __init__(self):
        self.read = lambda size=-1: Asynchronous.read(self)


@pytest.mark.parametrize("make, message", [
    (Asynchronous, "asynchronously"), (Awaitable, "asynchronously"), (lambda: io.StringIO("x"), "binary mode"),
    (lambda: codecs.getreader("utf-8")(io.BytesIO(b"x")), "binary mode"),
    (lambda: Reader(b"x", read=lambda n: None), "binary mode"),
    (lambda: iter([b"x"]), "must be a path, bytes or a binary file object"),
])
def test_what_cannot_be_read_is_refused_by_name(make, message):
    with pytest.raises(BadRequestError, match="file .*" + message) as caught:
        sent(make())
    assert caught.value.param == "file"


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("no"), KeyError("x"), EOFError()])
def test_what_the_callers_file_raises_passes(error):
    with pytest.raises(type(error)) as caught:
        sent(Reader(b"", read=refuses(error)))
    assert caught.value is error


class Named(io.BytesIO):
    def __init__(self, name):
        super().__init__(b"x")
        self.name = name


@pytest.mark.parametrize("name, filename", [
    ("/x/y/a.webm", "a.webm"), (b"/x/b.wav", "b.wav"), ("<stdin>", None), (3, None), ("/x/", None)])
def test_the_name_of_an_open_file(name, filename):
    assert sent(Named(name))[0] == (filename or "audio")


def test_headers_of_openai_s_tuple_are_sent():
    with transcription.form({"file": ("a.wav", b"x", "audio/wav", {"X-Own": "1"})}) as body:
        assert b"Content-Type: audio/wav\r\nX-Own: 1\r\n\r\nx\r\n" in body.read()


@pytest.mark.parametrize("file, message", [
    (None, "file is required"), (5, "binary file object, got int"), (("a",), "file as a tuple"),
    (("a", None), "file is required"), (("a", "b", "c", {}, 1), "file as a tuple")])
def test_files_that_are_none(file, message):
    with pytest.raises(BadRequestError, match="(?i)" + message.replace("(", r"\(")) as caught:
        sent(file)
    assert caught.value.param == "file"


# First bytes: RIFF and FLAC specifications, RFC 3533 (Ogg), Matroska's EBML header, ISO 14496-12, ID3v2, ISO 11172-3.
@pytest.mark.parametrize("head, guessed", [
    (WAV, ("audio.wav", "audio/wav")),
    (b"RF64\xff\xff\xff\xffWAVE", ("audio.wav", "audio/wav")),
    (b"ID3\x04\x00", ("audio.mp3", "audio/mpeg")),
    (b"\xff\xfb\x90\x64", ("audio.mp3", "audio/mpeg")),
    (b"fLaC\x00\x00", ("audio.flac", "audio/flac")),
    (b"OggS\x00\x02", ("audio.ogg", "audio/ogg")),
    (b"\x1aE\xdf\xa3\x01", ("audio.webm", "audio/webm")),
    (b"\x00\x00\x00 ftypM4A ", ("audio.m4a", "audio/mp4")),
    (b"\xff\xf1\x50\x80", ("audio", "application/octet-stream")),  # AAC in ADTS: the layer is 0
    (b"RIFF\x00\x00\x00\x00AVI ", ("audio", "application/octet-stream")),
    (b"Ogg\x00\x02", ("audio", "application/octet-stream")),
    (b"\xff", ("audio", "application/octet-stream")),
    (b"", ("audio", "application/octet-stream")),
])
def test_names_from_the_first_bytes(head, guessed):
    assert transcription.guess_name(head) == guessed
    assert sent(head) == guessed + (head,)


# ---------------------------------------------------------------- a received form


def test_every_field_of_a_form_is_kept():
    file = io.BytesIO(WAV)
    form = [Part("model", None, None, b"w"), Part("x", None, None, b"1"), Part("file", "a.wav", "audio/wav", file),
            Part("x", None, None, b"2"), Part("x", None, None, b"3"), Part("include[]", None, None, b"a"),
            Part("stream", None, None, b"True")]
    got = transcription.from_form(form)
    assert got == {"model": "w", "x": ["1", "2", "3"], "file": ("a.wav", file, "audio/wav"), "include[]": "a",
                   "stream": True}
    assert transcription.fields(got) == [("model", "w"), ("x", "1"), ("x", "2"), ("x", "3"), ("include[]", "a"),
                                         ("stream", "true")]


def test_a_form_that_says_nothing_of_streaming():
    assert transcription.from_form([Part("model", None, None, b"w")]) == {"model": "w"}


@pytest.mark.parametrize("word, value", [(word.encode(), True) for word in "1 true True t y yes on".split()] + [
    (word.encode(), False) for word in "0 false f n no off".split()] + [(b" on", True), (b"maybe", "maybe")])
def test_stream_is_read_as_vllm_reads_it(word, value):
    assert transcription.from_form([Part("stream", None, None, word)])["stream"] == value


@pytest.mark.parametrize("form, message", [
    ([Part("file", None, None, b"/etc/passwd")], "file must be an uploaded file"),
    ([Part("prompt", "a.txt", None, io.BytesIO())], "only file may be an uploaded file"),
    ([Part("file", "a", None, io.BytesIO()), Part("file", "b", None, io.BytesIO())], "more than once"),
    ([Part("model", None, None, b"\xff")], "not UTF-8"),
])
def test_forms_that_are_refused(form, message):
    with pytest.raises(BadRequestError, match=message) as caught:
        transcription.from_form(form)
    assert caught.value.param == form[-1].name


# ---------------------------------------------------------------- reply


@pytest.mark.parametrize("name", [name for name in wire.names("audio_") if wire.load(name).status == 200
                                  and not wire.load(name).streams])
def test_recorded_replies_come_back_whole(name):
    transcript = wire.load(name)
    asked = dict(map(tuple, transcript.request["body"]["multipart_fields"])).get("response_format")
    assert transcription.result(transcript.body, transcript.content_type, asked) == transcript.json


def test_odd_json_is_kept_as_it_is():
    sent = {"task": "transcribe", "duration": "2.0", "text": "x", "segments": [{"no_speech_prob": None}]}
    for content_type in ("application/json; charset=utf-8", "application/problem+json", "text/plain", ""):
        assert transcription.result(json.dumps(sent).encode(), content_type, "verbose_json") == sent
    assert transcription.result(b'\xef\xbb\xbf{"text": ""}', "application/json") == {"text": ""}
    assert transcription.result(b'{"text": "a"}', "text/plain", ["text", "text"]) == {"text": "a"}
    assert transcription.result(b'" words"', "application/json", "text") == {"text": " words"}


@pytest.mark.parametrize("body, content_type, asked", [
    (b"1\n00:00:00,000 --> 00:00:01,000\nHello\n\n", "text/plain; charset=utf-8", "srt"),
    (b"WEBVTT\n\n00:00.000 --> 00:01.000\nHello\n", "text/vtt", "vtt"),
    (b"{braces} are words here", "text/plain", "text"),
    (b"Hello\n", "", "text"),
    (b"", "text/plain", "text"),
    ("Grüße".encode(), "text/plain", None),
])
def test_text_becomes_text(body, content_type, asked):
    assert transcription.result(body, content_type, asked) == {"text": body.decode()}


@pytest.mark.parametrize("body, content_type, asked, message", [
    (b"<!doctype html><p>hi", "text/html", "text", "HTML response"),
    (b" <html>", "text/plain", "json", "HTML response"),
    (b"", "application/json", "json", "not JSON"),
    (b"{", "application/json", "json", "not JSON"),
    (b"[" * 100000, "application/json", "json", "not JSON"),
    (b"words", "application/octet-stream", None, "not JSON"),
    (b"[1]", "application/json", "json", "must be an object, got list"),
    (b"{}", "application/json", "json", "no answer to transcription: {}"),
    (b'{"object": "list", "data": []}', "application/json", "text", "no answer to transcription"),
    (b'{"text": null}', "application/json", "json", "no answer to transcription"),
    (b'{"text": 5}', "application/json", "json", "no answer to transcription"),
    (b"caf\xe9", "text/plain", "text", "not UTF-8: byte 3"),
])
def test_replies_that_are_none(body, content_type, asked, message):
    with pytest.raises(ResponseDecodeError, match=message):
        transcription.result(body, content_type, asked)
