"""Transcription: text, formats and streams are the server's, whatever way the file was given."""

import io
import math
import struct
import wave

import pytest
from oracle import ask, differences, form

from vllm_bridge import APIStatusError

PATH = "/v1/audio/transcriptions"


def tone(seconds, rate=16000):
    """Write a tone of 440 Hz as a WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        period = [int(9000 * math.sin(2 * math.pi * 440 * tick / rate)) for tick in range(rate)]
        file.writeframes(struct.pack("<%dh" % rate, *period) * seconds)
    return out.getvalue()


SHORT = tone(2)
FIELDS = {
    "plain": {"language": "en"},
    "text": {"language": "en", "response_format": "text"},
    "french": {"language": "fr"},
    "detected": {},
    "prompted": {"language": "en", "prompt": " Hello"},
    "cool": {"language": "en", "temperature": "0", "seed": "1"},
    "limited": {"language": "en", "max_completion_tokens": "2"},
}
WRONG = {
    "language": {"language": "klingon"},
    "format": {"language": "en", "response_format": "xml"},
    "srt": {"language": "en", "response_format": "srt"},
    "temperature": {"language": "en", "temperature": "hot"},
}


def raw_of(face, fields, content=SHORT):
    body, headers = form(dict(fields, model=face.server.model), "a.wav", content)
    return ask(face.server, "POST", PATH, body, headers)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_reply_is_the_servers(whisper, name):
    raw = raw_of(whisper, FIELDS[name])
    assert raw.status == 200
    reply = whisper.vllm.transcription(model=whisper.model, file=("a.wav", SHORT, "audio/wav"), **FIELDS[name])
    assert reply.text == raw.json["text"]
    if whisper.kind == "gateway" and FIELDS[name].get("response_format") == "text":
        assert reply == {"text": raw.json["text"]}  # plain text, as OpenAI answers; vLLM 0.32.0 sends JSON with usage
    else:
        assert list(differences(reply, raw.json)) == []


def test_verbose(whisper):
    fields = {"language": "en", "response_format": "verbose_json"}
    raw = raw_of(whisper, fields).json
    reply = whisper.vllm.transcription(model=whisper.model, file=("a.wav", SHORT, "audio/wav"), **fields)
    assert list(differences(reply, raw)) == []
    assert [segment["text"] for segment in reply["segments"]] == [segment["text"] for segment in raw["segments"]]


def test_every_way_to_give_a_file(whisper, tmp_path):
    path = tmp_path / "speech.wav"
    path.write_bytes(SHORT)
    with open(str(path), "rb") as opened:
        given = [str(path), path, SHORT, io.BytesIO(SHORT), opened, ("x.wav", SHORT), ("x.wav", io.BytesIO(SHORT))]
        texts = [whisper.vllm.transcription(model=whisper.model, file=file, language="en").text for file in given]
    assert set(texts) == {raw_of(whisper, {"language": "en"}).json["text"]}


def test_the_stream_says_what_the_reply_says(whisper):
    text = raw_of(whisper, {"language": "en"}).json["text"]
    with whisper.vllm.transcription_stream(model=whisper.model, file=("a.wav", SHORT), language="en") as stream:
        events = list(stream)
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    assert events[-1].type == "transcript.text.done"
    assert "".join(event.delta for event in events[:-1]).strip() == events[-1].text.strip() == text.strip()


def test_a_stream_of_several_segments(whisper):
    """vLLM 0.32.0 says "stop" after every 30 s of sound; the rest must still come."""
    content = tone(65)
    text = raw_of(whisper, {"language": "en"}, content).json["text"]
    raw = raw_of(whisper, {"language": "en", "stream": "true"}, content).events
    assert sum(bool(event["choices"] and event["choices"][0].get("finish_reason")) for event in raw) == 3
    streamed = list(whisper.vllm.transcription_stream(model=whisper.model, file=("a.wav", content), language="en"))
    assert streamed[-1].type == "transcript.text.done"
    assert [event.type for event in streamed].count("transcript.text.done") == 1
    assert streamed[-1].text.split() == text.split()


def test_the_fixed_text(whisper, scripted):
    scripted(whisper)
    assert whisper.vllm.transcription(model=whisper.model, file=SHORT, language="en").text == " Hello world. Goodbye."


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_error_is_the_servers(whisper, name):
    raw = raw_of(whisper, WRONG[name])
    with pytest.raises(APIStatusError) as caught:
        whisper.vllm.transcription(model=whisper.model, file=("a.wav", SHORT, "audio/wav"), **WRONG[name])
    assert caught.value.status_code == raw.status
    assert caught.value.message == raw.json["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"not a sound at all", SHORT[:30]], ids=["empty", "text", "cut"])
@pytest.mark.parametrize("operation", ["transcription", "transcription_stream"])
def test_what_is_no_sound(whisper, content, operation):
    raw = raw_of(whisper, {"language": "en"}, content)
    with pytest.raises(APIStatusError) as caught:
        getattr(whisper.vllm, operation)(model=whisper.model, file=("a.wav", content, "audio/wav"), language="en")
    assert caught.value.status_code == raw.status == 400
    assert caught.value.message == raw.json["error"]["message"]


def test_a_translation_is_the_servers(whisper):
    raw = ask_form(whisper.server, {"language": "en"})
    assert whisper.vllm.translation(model=whisper.model, file=SHORT, language="en").text == raw
    with whisper.vllm.translation_stream(model=whisper.model, file=SHORT, language="en") as stream:
        assert list(stream)[-1].text == raw


def ask_form(server, fields):
    """Translate without the project's own code."""
    body, headers = form(dict(fields, model=server.model), "a.wav", SHORT)
    return ask(server, "POST", "/v1/audio/translations", body, headers).json["text"]
