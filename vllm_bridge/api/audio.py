"""Transcription: keywords → form, reply → object."""

import inspect
import io
import json
import os
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from ..errors import BadRequestError, ResponseDecodeError, is_html, undecodable
from ..nesting import loads

from ..http1.multipart import FilePart, MultipartBody, Part

__all__ = ["fields", "form", "from_form", "guess_name", "result"]

_FIRST = ("model", "language", "prompt", "response_format", "temperature", "timestamp_granularities", "include")
_BRACKETS = frozenset(("timestamp_granularities", "include"))  # arrays that OpenAI's form writes as name[]
_RAW_FORMATS = frozenset(("text", "srt", "vtt"))

_TYPES = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "mpga": "audio/mpeg",
    "mpeg": "audio/mpeg",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "oga": "audio/ogg",
    "opus": "audio/ogg",
    "m4a": "audio/mp4",
    "mp4": "audio/mp4",
    "webm": "audio/webm",
}


# ---------------------------------------------------------------- request


@contextmanager
def form(given: Dict[str, Any]) -> Iterator[MultipartBody]:
    """Lend a transcription's form, made of the caller's keywords, with its file open for the time of sending it.

    ``file`` is a path (``str`` or ``os.PathLike``), bytes, a binary file object, the upload object of a framework, or
    OpenAI's tuple ``(filename, content[, content_type[, headers]])``. Raises ``BadRequestError``.
    """
    with ExitStack() as stack:
        part = _file_part(given.get("file"), stack)
        body = MultipartBody(fields(given), part)
        stack.callback(body.close)
        yield body


def fields(given: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Return the caller's keywords, but for the file, as the fields of a form: the documented ones first."""
    names = [name for name in _FIRST if name in given]
    names += [name for name in given if name not in _FIRST and name not in ("stream", "file")]
    return [field for name in names + ["stream"] for field in _fields(name, given.get(name))]


def _fields(name: str, value: Any) -> Iterator[Tuple[str, str]]:
    if value is None:
        return
    label = name + "[]" if name in _BRACKETS else name
    for item in value if isinstance(value, (list, tuple)) else (value,):
        if item is not None:
            yield label, _text(name, item)


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        short = "%g" % value
        return short if float(short) == value else repr(value)
    if isinstance(value, int):
        return str(value)
    try:
        if isinstance(value, (bytes, bytearray)):
            return value.decode("utf-8")
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequestError("%s cannot be sent as a form field: %s" % (name, error), param=name) from None


def _file_part(file: Any, stack: ExitStack) -> FilePart:
    filename: Any = None
    content_type: Any = None
    headers: Any = ()
    if isinstance(file, tuple):
        if not 2 <= len(file) <= 4:
            raise _bad_file("as a tuple is (filename, content[, content_type[, headers]])")
        filename, file, content_type, headers = (file + (None, None))[:4]
    if file is None:
        raise _bad_file("is required")
    content, name, kind = _opened(file, stack)
    filename = filename or _basename(name)
    if content_type is None:
        content_type = kind or (_type_of(filename) if filename else None)
    pairs = headers.items() if isinstance(headers, dict) else headers or ()
    return FilePart("file", content, filename, content_type, guess_name, tuple(pairs))


def _opened(file: Any, stack: ExitStack) -> Tuple[Any, Any, Optional[str]]:
    """Return what to read a file from, its name and its content type, as far as it has them."""
    if isinstance(file, (bytes, bytearray, memoryview)):
        return bytes(file), None, None
    if isinstance(file, (str, os.PathLike)):
        path = os.fsdecode(file)
        try:
            return stack.enter_context(open(path, "rb")), path, None
        except (OSError, ValueError) as error:  # ValueError: a NUL, or what no file system can name
            why = getattr(error, "strerror", None) or str(error)
            raise BadRequestError("file: cannot read %r: %s" % (path, why), param="file") from error
    # The upload objects of frameworks: Starlette's and aiohttp's hold the file as `file`, Django's and Werkzeug's are
    # one, all but Django's have a `filename`.
    for source in (file, getattr(file, "file", None)):
        read = getattr(source, "read", None)
        if callable(read) and not inspect.iscoroutinefunction(read):
            kind = getattr(file, "content_type", None)
            name = getattr(source, "name", None)
            if not isinstance(file, io.IOBase):  # GzipFile warns when it is asked
                name = getattr(file, "filename", name)
            return source, name, kind if isinstance(kind, str) and kind else None
    if hasattr(file, "read"):
        raise _bad_file("is read asynchronously: give its bytes, await file.read()")
    raise _bad_file("must be a path, bytes or a binary file object, got %s" % type(file).__name__)


def _bad_file(problem: str) -> BadRequestError:
    return BadRequestError("file " + problem, param="file")


def _basename(name: Any) -> Optional[str]:
    # An open file's name may be a number (a descriptor), bytes, or "<stdin>".
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str) or name.startswith("<"):
        return None
    return os.path.basename(name) or None


def _type_of(filename: str) -> str:
    return _TYPES.get(filename.rpartition(".")[2].lower(), "application/octet-stream")


def guess_name(head: bytes) -> Tuple[str, str]:
    """Return a file name and a content type for audio that has none, from its first 16 bytes."""
    kind = _kind(head)
    return ("audio." + kind, _TYPES[kind]) if kind else ("audio", "application/octet-stream")


def _kind(head: bytes) -> Optional[str]:
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[4:8] == b"ftyp":
        return "m4a"
    for magic, kind in ((b"ID3", "mp3"), (b"fLaC", "flac"), (b"OggS", "ogg"), (b"\x1a\x45\xdf\xa3", "webm")):
        if head.startswith(magic):
            return kind
    # A bare MPEG audio frame: eleven set bits, then a layer that is not the reserved one.
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        return "mp3"
    return None


def from_form(parts: Iterable[Part]) -> Dict[str, Any]:
    """Fold the parts of a received form into keywords.

    A repeated field becomes a list. ``file`` has to be an uploaded file: as text it would be read as a path of
    this machine. Raises ``BadRequestError``.
    """
    wire: Dict[str, Any] = {}
    for part in parts:
        if (part.filename is None) == (part.name == "file"):
            problem = "file must be an uploaded file" if part.name == "file" else "only file may be an uploaded file"
            raise BadRequestError(problem, param=part.name)
        if part.name == "file":
            if "file" in wire:
                raise BadRequestError("file was sent more than once", param="file")
            wire["file"] = (part.filename or None, part.value, part.content_type)
        elif part.name not in wire:
            wire[part.name] = part.text()
        elif isinstance(wire[part.name], list):
            wire[part.name].append(part.text())
        else:
            wire[part.name] = [wire[part.name], part.text()]
    if isinstance(wire.get("stream"), str):
        wire["stream"] = _BOOLEANS.get(wire["stream"].strip().lower(), wire["stream"])
    return wire


# What vLLM's form takes for a boolean (pydantic's words).
_BOOLEANS = {word: True for word in ("true", "1", "on", "t", "y", "yes")}
_BOOLEANS.update({word: False for word in ("false", "0", "off", "f", "n", "no")})


# ---------------------------------------------------------------- reply


def result(body: bytes, content_type: str, response_format: Any = None) -> Dict[str, Any]:
    """Read the reply of a transcription that does not stream.

    Text, srt and vtt become ``{"text": body}``, to the byte. JSON is returned as it was sent (``duration`` may be a
    string, ``no_speech_prob`` null); vLLM answers ``response_format=text`` with JSON as well
    (tests/data/vllm-0.32.0/audio_text.json).
    Raises ``ResponseDecodeError``.
    """
    declared = content_type.split(";")[0].strip().lower()
    is_json = declared == "application/json" or declared.endswith("+json")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ResponseDecodeError("transcription reply is not UTF-8: byte %d" % error.start) from None
    if not is_json:
        if is_html(declared, text):
            raise ResponseDecodeError("HTML response received from provider", payload=text)
        if isinstance(response_format, str) and response_format in _RAW_FORMATS:  # a form may repeat it: a list
            return {"text": text}
        is_text = declared.startswith("text/") and declared != "text/event-stream"
        if is_text and not text.lstrip("\ufeff \t\r\n").startswith("{"):
            return {"text": text}
    try:
        payload = loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        raise undecodable("transcription reply is not JSON", text) from None
    if isinstance(payload, str):
        return {"text": payload}
    if not isinstance(payload, dict):
        raise ResponseDecodeError("transcription reply must be an object, got %s" % type(payload).__name__,
                                  payload=payload)
    if not isinstance(payload.get("text"), str):
        raise undecodable("the server sent no answer to transcription", text, payload=payload)
    return payload
