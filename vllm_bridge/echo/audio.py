"""POST /v1/audio/transcriptions and /v1/audio/translations: the form, the replies and the chunks of vLLM 0.32.0."""

import math
import struct
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Dict, List, NamedTuple, Tuple

from .directives import Plan
from .generate import counts, ids, pieces
from .refusal import Refusal, bad_request, detail, error_payload, invalid, missing, plain_bad_request, problem
from .reply import Reply, World, headed

_LANGUAGES = (
    "af ar hy az be bs bg ca zh hr cs da nl en et fi fr gl de el he hi hu is id it ja kn kk ko lv lt mk ms mr mi ne "
    "no fa pl pt ro ru sr sk sl es sw sv tl ta th tr uk ur vi cy").split()
_LARGEST = 25 * 1024 * 1024
_WINDOW = 30.0


class Upload(NamedTuple):
    """A file of a form."""

    filename: str
    content_type: str
    content: bytes


class Form(Dict[str, str]):
    """A parsed form: its fields, the last of each name; ``pairs`` as they were sent, and the ``files`` by name."""

    def __init__(self, pairs: List[Tuple[str, str]], files: Dict[str, Upload]) -> None:
        super().__init__(pairs)
        self.pairs = pairs
        self.files = files

    def true(self, name: str) -> bool:
        """Tell whether a field says yes."""
        return is_true(self.get(name))


def is_true(value: Any) -> bool:
    """Tell whether a field of a form or of a JSON body says yes."""
    return str(value).lower() in ("true", "1", "yes", "on")


def read_form(headers: Dict[str, str], body: bytes) -> Form:
    """Parse a multipart body. Raises Refusal as vLLM's parser does (audio_err_no_boundary, audio_err_bad_boundary)."""
    content_type = headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise invalid(missing("body.file", {}))
    if "boundary=" not in content_type:
        raise detail(400, "Missing boundary in multipart.")
    head = b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n"
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    if not message.is_multipart():
        raise detail(400, "Invalid multipart data.")
    pairs: List[Tuple[str, str]] = []
    files: Dict[str, Upload] = {}
    for part in message.iter_parts():
        name = str(part.get_param("name", "", "content-disposition"))
        raw = part.get_payload(decode=True)
        content = raw if isinstance(raw, bytes) else b""
        filename = part.get_filename()
        if filename is None:
            pairs.append((name, content.decode("utf-8", "replace")))
        else:
            files[name] = Upload(filename, part.get_content_type(), content)
    return Form(pairs, files)


def heard(form: Form) -> str:
    """Return the text that the directives are read from: the field ``prompt``."""
    return form.get("prompt", "")


def seconds(content: bytes) -> float:
    """Return how long a WAV file plays, by its header; any other content counts as one second."""
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE" and len(content) >= 44:
        rate = struct.unpack("<I", content[28:32])[0]
        return (len(content) - 44) / rate if rate else 1.0
    return 1.0


def checked(form: Form) -> None:
    """Raise Refusal for a form that vLLM refuses."""
    upload = form.files.get("file")
    if upload is None:
        if form.get("file"):
            message = "Expected 'file' to be a file-like object, not 'str'."
            raise Refusal(422, error_payload(422, message, "Unprocessable Entity"))
        raise invalid(missing("body.file", dict(form)))
    _check_format(form)
    language = form.get("language")
    if language and language not in _LANGUAGES:
        raise plain_bad_request("Unsupported language: %r.  Must be one of %r." % (language, _LANGUAGES))
    if len(upload.content) > _LARGEST:
        raise bad_request("Maximum file size exceeded", "audio_filesize_mb", len(upload.content) / 1024.0 / 1024.0)
    if not upload.content:
        raise plain_bad_request("Invalid or corrupted audio data. Ensure the input is a valid audio or video file "
                                "(e.g. a complete WAV, MP3, or MP4).")


def _check_format(form: Form) -> None:
    kind = form.get("response_format", "json")
    if kind not in ("json", "text", "srt", "verbose_json", "vtt", "diarized_json"):
        known, other = "'json', 'text', 'srt', 'verbose_json' or 'vtt'", "'diarized_json'"
        raise invalid(*[problem("literal_error", "body.response_format", "Input should be " + names, kind,
                                expected=names) for names in (known, other)])
    if kind in ("srt", "vtt"):
        raise plain_bad_request(
            "Currently only support response_format: `text`, `json`, `verbose_json` or `diarized_json`")
    if form.true("stream") and kind == "verbose_json":
        raise plain_bad_request("verbose_json format doesn't support streaming case")
    if form.true("stream_include_usage") and not form.true("stream"):
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_include_usage")


def transcribe(form: Form, plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer a transcription: a text that names the file and its size, once for every 30 seconds of it.

    The audio itself is not looked at beyond a WAV file's header, so that any bytes may be sent.
    """
    upload = form.files["file"]
    duration = seconds(upload.content)
    windows = [_heard(upload, plan)] * max(1, math.ceil(duration / _WINDOW))
    tokens = sum(len(pieces(text)) + 1 for text in windows)
    if form.true("stream"):
        return Reply(events=_chunks(form, identity, windows, "abort" if plan.abort else "stop"), tokens=tokens)
    # Windows are joined with a space besides their own leading one (audio_65s_verbose).
    text = " ".join(windows)
    if form.get("response_format") == "verbose_json":
        segments = [_segment(index, window, min(duration, (index + 1) * _WINDOW))
                    for index, window in enumerate(windows)]
        return Reply({"duration": duration, "language": form.get("language") or "en", "text": text,
                      "segments": segments, "words": None}, tokens=tokens)
    return Reply({"text": text, "usage": {"type": "duration", "seconds": math.ceil(duration)}}, tokens=tokens)


def translate(form: Form, plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer a translation: the same words, in the same language (audio_translate_json, audio_translate_stream)."""
    reply = transcribe(form, plan, identity, world)
    if isinstance(reply.payload, dict):
        reply.payload.pop("usage", None)
    for event in reply.events or ():
        event["object"] = "translation.chunk"
    return reply


def _heard(upload: Upload, plan: Plan) -> str:
    if plan.empty:
        return ""
    if plan.count is not None:
        return "".join(" %d" % number for number in range(1, plan.count + 1))
    return " I heard %s: %d bytes." % (upload.filename, len(upload.content))


def _segment(index: int, text: str, end: float) -> Dict[str, Any]:
    start = index * _WINDOW
    return {"id": 0, "avg_logprob": -0.125, "compression_ratio": 0.5, "end": end, "no_speech_prob": None,
            "seek": int(start), "start": start, "temperature": 0.0, "text": text,
            "tokens": ids(pieces(text))}


def _chunks(form: Form, identity: Dict[str, Any], windows: List[str], finish: str) -> List[Dict[str, Any]]:
    """Return the chunks: every window ends with a finish reason of its own (audio_65s_stream)."""
    with_usage = form.true("stream_include_usage")
    chunks = []
    for number, window in enumerate(windows):
        choices: List[Dict[str, Any]] = [
            {"delta": {"content": text}} for text in pieces(window if number == 0 else " " + window)]
        choices.append({"delta": {"content": ""}, "finish_reason": finish, "stop_reason": None})
        for choice in choices:
            chunks.append(headed(identity, "transcription.chunk", choices=[choice]))
            if with_usage and form.true("stream_continuous_usage_stats"):
                chunks[-1]["usage"] = counts(len(windows), len(chunks))
    if with_usage:
        chunks.append(headed(identity, "transcription.chunk", choices=[], usage=counts(len(windows), len(chunks))))
    return chunks
