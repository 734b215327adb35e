"""Transcripts: which server each one needs, its request as bytes, its file as text, and what differs between two.

The list of requests is the transcripts themselves: each holds its own. Nothing here opens a socket.
"""

import io
import json
import math
import re
import struct
import wave
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Tuple

from .wire import head

# The first prefix that fits says which plan of servers.py answers a transcript.
PLAN_OF: List[Tuple[str, str]] = [
    ("think_", "think"), ("auth_", "auth"), ("err_queue_", "auth"), ("audio_", "whisper"),
    ("embed_matryoshka_", "matryoshka"), ("embed_", "embed"), ("err_pooling_model_", "embed"),
    ("rerank_", "rerank"), ("score_", "rerank"), ("err_rerank_model_", "rerank"),
    ("store_", "store"), ("req_", "store"), ("notoolparser_", "toolless"), ("clamp_", "toolless"), ("", "chat"),
]
LEFT_OUT: List[Tuple[str, str]] = [
    ("kill_", "a server was killed while it answered"),
    ("engine_dead_", "a model with too small heads killed its engine"),
    ("nan_", "a model whose weights are not numbers"),
    ("random_weights_", "an untrained chat model"),
    ("clamp_", "an untrained chat model"),
    ("notoolparser_none", "an untrained chat model"),
    ("notoolparser_responses", "an untrained chat model"),
    ("err_queue_full", "other requests filled the queue"),
    ("req_36MB_body", "the transcript names its body and does not hold it"),
    ("req_chunked_body", "the transcript names its body and does not hold it"),
    ("req_deep_nesting", "the transcript names its body and does not hold it"),
    ("err_gzip_request_body", "the transcript names its body and does not hold it"),
]
AGAIN = {"think_cached_tokens_2"}              # the reply to a request that was made before
VOLATILE_KEYS = {"created", "created_at", "completed_at", "signature", "root", "tokens_per_second"}
VOLATILE_HEADERS = {"date", "content-length"}
IDS = re.compile(r"\b((?:[a-z]+-)*[a-z]+[-_])(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{16,32})\b")
BARE_ID = re.compile(r"\b[0-9a-f]{32}\b|\b[0-9a-f]{16}\b")
BUILD = re.compile(r"(vllm-[0-9.]+)-[0-9a-f]{8}\b")
TEXTS = ("content", "reasoning", "text", "arguments", "delta")
UNEVEN = {"logprobs", "token_ids", "usage", "sequence_number"}       # of one event: they follow how tokens fall
COUNTS = ("completion_tokens", "total_tokens", "output_tokens", "tokens", "token_ids", "logprobs", "finish_reason")
UNKNOWN_PAIR = ("relevance_score", "index", "text")       # scores of pairs that rerank.py does not solve for
CHANCE: Dict[str, Tuple[str, ...]] = {
    "rerank_many": ("index",),                 # equal documents differ in the ninth digit, and so change places
    "rerank_ties": ("index",),
    "rerank_err_empty_doc": UNKNOWN_PAIR,
    "rerank_err_empty_query": UNKNOWN_PAIR,
    "rerank_max_tokens_per_doc": UNKNOWN_PAIR,
    "store_responses_get_stream_starting_after": ("delta", "text", "type"),      # how many events were before it
}
PORT = re.compile(r"127\.0\.0\.1:[0-9]+")
BOUNDARY = re.compile(r"boundary=(\S+)")


def left_out(name: str, record: Dict[str, Any], created: "set[str]") -> Optional[str]:
    """Give the reason why a transcript is not recorded again; `created` are the response ids that others make."""
    for prefix, why in LEFT_OUT:
        if name.startswith(prefix):
            return why
    wanted = re.findall(r"resp_[0-9a-f]+", record["request"]["path"])
    if any(one not in created for one in wanted):
        return "the response that it asks for was made by a request that is not among the transcripts"
    return None


def plan_of(name: str) -> str:
    """Name the plan of the server that answers a transcript."""
    return next(plan for prefix, plan in PLAN_OF if name.startswith(prefix))


def response_id(record: Dict[str, Any]) -> Optional[str]:
    """Find the id of the response that a transcript's exchange made."""
    if record["request"]["method"] != "POST" or record["request"]["path"] != "/v1/responses":
        return None
    found = re.search(r'"id":"(resp_[0-9a-f]+)"', "".join(record["frames"]))
    return found.group(1) if found else None


def tone(seconds: int, rate: int) -> bytes:
    """Write a tone of 440 Hz as a WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        second = [int(9000 * math.sin(2 * math.pi * 440 * tick / rate)) for tick in range(rate)]
        file.writeframes(struct.pack("<%dh" % rate, *second) * seconds)
    return out.getvalue()


def sound(size: int) -> bytes:
    """Make the file that a transcript only tells the size of."""
    for seconds, rate in ((2, 16000), (2, 44100), (65, 16000)):
        if size == 44 + 2 * seconds * rate:
            return tone(seconds, rate)
    if size > 2 ** 24:
        return tone(2, 16000)[:44] + bytes(size - 44)
    return tone(2, 16000)[:size] if size != 16 else b"this is no sound"


def form(body: Dict[str, Any], boundary: str) -> bytes:
    """Write the multipart body that a transcript describes."""
    parts = ['--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, name, value)
             for name, value in body["multipart_fields"]]
    out = "".join(parts).encode("utf-8")
    if body["file"] is not None:
        name, kind, size = body["file"]
        out += ('--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\nContent-Type: %s\r\n\r\n'
                % (boundary, name, kind)).encode("utf-8") + sound(size) + b"\r\n"
    return out + ("--%s--\r\n" % boundary).encode("ascii")


def body_bytes(request: Dict[str, Any]) -> Optional[bytes]:
    """Turn the body of a transcript's request into the bytes that were sent."""
    body = request["body"]
    if body is None:
        return None
    if isinstance(body, str):
        # Bytes that are no UTF-8 are written as \xNN.
        pieces = re.split(r"\\x([0-9a-f]{2})", body)
        return b"".join(bytes([int(piece, 16)]) if place % 2 else piece.encode("utf-8")
                        for place, piece in enumerate(pieces))
    if isinstance(body, dict) and "multipart_fields" in body:
        mark = BOUNDARY.search(request["headers"]["Content-Type"])
        assert mark is not None
        return form(body, mark.group(1))
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def renamed(request: Dict[str, Any], ids: Dict[str, str]) -> Dict[str, Any]:
    """Replace the ids of earlier responses by those that this server gave."""
    text = json.dumps(request)
    for old, new in ids.items():
        text = text.replace(old, new)
    result: Dict[str, Any] = json.loads(text)
    return result


def request_bytes(request: Dict[str, Any], port: int) -> bytes:
    """Write the whole request."""
    body = body_bytes(request)
    length = None if body is None else len(body)
    return head(request["method"], request["path"], port, request["headers"], length) + (body or b"")


def dumped(record: Dict[str, Any]) -> str:
    """Write a transcript's file."""
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


# ---------------------------------------------------------------- what differs


def masked(value: Any, key: str = "") -> Any:
    """Replace what is new in every run (ids, times, ports) so that the rest can be compared."""
    if key in VOLATILE_KEYS or key.endswith("_ms"):
        return "*"
    if isinstance(value, dict):
        return {name: masked(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [masked(part, key) for part in value]
    if isinstance(value, str):
        return PORT.sub("127.0.0.1:*", BUILD.sub(r"\1-*", BARE_ID.sub("*", IDS.sub(r"\1*", value))))
    return value


def leaves(value: Any, path: str = "") -> Iterator[Tuple[str, Any]]:
    """Walk through an event: the path of each value, a choice or a call named by its own index."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in UNEVEN:
                yield from leaves(part, "%s.%s" % (path, name))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            index = part.get("index", place) if isinstance(part, dict) else place
            yield from leaves(part, "%s[%s]" % (path, index))
    else:
        yield path, value


def stream_meaning(events: List[Any]) -> Dict[str, Any]:
    """Put a stream together: how many tokens an event holds, and which event ends it, is chance.

    Gives the texts of each path joined, of each other path the values that it had, and the last usage.
    """
    out: Dict[str, Any] = {}
    for event in events:
        for path, value in leaves(event):
            if path.rsplit(".", 1)[-1] in TEXTS and isinstance(value, str):
                out[path + " joined"] = out.get(path + " joined", "") + value
            elif value not in out.setdefault(path, []):
                out[path].append(value)
        if isinstance(event, dict) and event.get("usage"):
            out["usage"] = event["usage"]
    for values in out.values():
        if isinstance(values, list) and len(values) > 1 and None in values:
            values.remove(None)                # whether an event without the value came before is chance too
    return out


def is_sampled(record: Dict[str, Any]) -> bool:
    """Tell whether the words of a reply were drawn by chance."""
    body = record["request"]["body"]
    return isinstance(body, dict) and "multipart_fields" not in body and body.get("temperature") not in (0, "0")


def meaning(record: Dict[str, Any]) -> Dict[str, Any]:
    """Reduce a transcript to what should be the same whenever it is recorded."""
    body = "".join(record["frames"])
    headers = {name.lower(): masked(value) for name, value in record["headers"] or []
               if name.lower() not in VOLATILE_HEADERS}
    parsed: Any
    if re.search(r"^data:", body, re.M):
        lines = [line[5:].strip() for line in body.split("\n") if line.startswith("data:")]
        parsed = stream_meaning([masked(json.loads(line)) if line.startswith("{") else line for line in lines])
    else:
        try:
            parsed = masked(json.loads(body))
        except ValueError:
            parsed = masked(body)
    return {"status": record["status_line"], "headers": headers, "end": record["end"], "body": parsed}


def by_chance(record: Dict[str, Any]) -> FrozenSet[str]:
    """Name the fields of a reply that the next recording may have otherwise, the server being the same."""
    return frozenset(CHANCE.get(record.get("name", ""), ()) + (TEXTS + COUNTS if is_sampled(record) else ()))


def differing(old: Any, new: Any, path: str = "", chance: FrozenSet[str] = frozenset()) -> Iterator[str]:
    """Name the places where two meanings differ, fields left to chance excepted."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            if key.rsplit(".", 1)[-1].split(" ")[0] in chance:
                continue
            if key not in new:
                yield "%s.%s is gone" % (path, key)
            elif key not in old:
                yield "%s.%s is new: %s" % (path, key, json.dumps(new[key])[:80])
            else:
                yield from differing(old[key], new[key], "%s.%s" % (path, key), chance)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (one, other) in enumerate(zip(old, new)):
            yield from differing(one, other, "%s[%d]" % (path, place), chance)
    elif isinstance(old, float) and isinstance(new, (int, float)):
        if abs(old - new) > 0.05 * max(1.0, abs(old)):      # the last digits depend on threads and batches
            yield "%s was %r and is %r" % (path, old, new)
    elif old != new:
        yield "%s was %s and is %s" % (path, json.dumps(old)[:120], json.dumps(new)[:120])


def changes(old: Dict[str, Any], new: Dict[str, Any]) -> List[str]:
    """List what a new recording says differently."""
    return list(differing(meaning(old), meaning(new), chance=by_chance(old)))
