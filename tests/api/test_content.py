import base64
import doctest
import io
import json
import wave

import pytest

import vllm_bridge
from vllm_bridge import BadRequestError, audio, image
from vllm_bridge.api import content

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        written.writeframes(bytes(16))
    return file.getvalue()


def test_the_examples():
    assert doctest.testmod(content).attempted > 1
    assert doctest.testmod(content).failed == 0
    assert vllm_bridge.image is image and vllm_bridge.audio is audio


# The first bytes: PNG §5.2, JPEG's SOI (T.81 §B.1.1.3), GIF89a §17, RIFF's form types, ISO 14496-12 §4.3.
@pytest.mark.parametrize("head, kind", [
    (b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff\xe0\0\x10JFIF", "jpeg"), (b"GIF89a", "gif"), (b"GIF87a", "gif"),
    (b"RIFF\x24\0\0\0WEBPVP8 ", "webp"), (b"BM\x46\0", "bmp"), (b"II*\0", "tiff"), (b"MM\0*", "tiff"),
    (b"\0\0\0\x1cftypavif", "avif"), (b"\0\0\0\x18ftypheic", "heic"),
])
def test_images(head, kind, tmp_path):
    data = head + bytes(8)
    url = "data:image/%s;base64,%s" % (kind, base64.b64encode(data).decode())
    path = tmp_path / "without a suffix"
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), path, str(path), io.BytesIO(data)):
        part = image(source)
        assert part == {"type": "image_url", "image_url": {"url": url}}
        json.dumps(part)
    assert image(data, detail="low")["image_url"] == {"url": url, "detail": "low"}


@pytest.mark.parametrize("data, kind", [
    (sound(), "wav"), (b"ID3\x04\0", "mp3"), (b"\xff\xfb\x90\0", "mp3"), (b"fLaC\0", "flac"), (b"OggS\0", "ogg"),
    (b"\0\0\0\x20ftypM4A ", "m4a"), (b"\x1aE\xdf\xa3", "webm"),
])
def test_sounds(data, kind):
    for source in (data, io.BytesIO(data)):
        part = audio(source)
        assert part["type"] == "input_audio"
        assert part["input_audio"] == {"data": base64.b64encode(data).decode(), "format": kind}
    assert content.kind_of(data) == "audio"


@pytest.mark.parametrize("url", ["https://example.com/a", "http://h/a", "HTTPS://h/a", "data:image/png;base64,AA=="])
def test_urls_stay(url):
    assert image(url)["image_url"]["url"] == url
    assert audio(url) == {"type": "audio_url", "audio_url": {"url": url}}


def test_a_format_that_is_given():
    assert audio(b"raw", format="pcm16")["input_audio"]["format"] == "pcm16"


@pytest.mark.parametrize("make, source, message", [
    (image, "/no/such/file.png", "image: cannot read '/no/such/file.png': No such file"),
    (audio, "/no/such.wav", "audio: cannot read '/no/such.wav'"),
    (image, "a\0b", "image: cannot read"),
    (image, b"words", "image: this is none that is known by its first bytes (avif, bmp,"),
    (image, sound(), "image: this is none"),
    (audio, PNG, "audio: this is none that is known by its first bytes (flac, m4a,"),
    (image, b"", "image: this is none"),
    (image, 5, "image must be a path, a URL, bytes or a binary file object, got int"),
    (audio, None, "audio must be a path"),
    (image, io.StringIO("x"), "image must be a path"),
])
def test_what_is_none(make, source, message):
    with pytest.raises(BadRequestError) as caught:
        make(source)
    assert caught.value.message.startswith(message)
    assert caught.value.param == make.__name__


def test_kinds():
    assert content.kind_of(PNG) == "image"
    assert content.kind_of(b"words") is None
    assert content.kind_of(b"") is None
