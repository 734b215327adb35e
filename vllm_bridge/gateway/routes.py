"""Which request goes where: `ROUTES` as data, and finding one."""

import re
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Tuple

__all__ = ["Found", "ROUTES", "Route", "find", "meant"]


class Route(NamedTuple):
    """One method of one path, the handler of the gateway for it, and the operation of the provider.

    In a path ``{}`` stands for one segment and ``{*}`` for the rest, which is the name of a model.
    """

    method: str
    path: str
    handler: str
    operation: str
    public: bool = False  # served without an API key


class Found(NamedTuple):
    """What a path leads to: a route, or the methods that the path has; nothing at all for an unknown path."""

    route: Optional[Route] = None
    rest: str = ""  # what {*} stands for
    methods: Tuple[str, ...] = ()


_SERVED: Tuple[Route, ...] = (
    Route("POST", "/v1/chat/completions", "operation", "chat_completion"),
    Route("POST", "/v1/completions", "operation", "text_completion"),
    Route("POST", "/v1/embeddings", "operation", "embedding"),
    Route("POST", "/v1/rerank", "operation", "rerank"),
    Route("POST", "/rerank", "operation", "rerank"),
    Route("POST", "/v1/responses", "operation", "responses"),
    Route("POST", "/v2/rerank", "operation", "rerank"),
    Route("POST", "/v1/audio/transcriptions", "form", "transcription"),
    Route("POST", "/v1/audio/translations", "form", "translation"),
    Route("POST", "/v1/audio/speech", "elsewhere", "speech"),
    Route("POST", "/v1/images/generations", "elsewhere", "image_generation"),
    Route("POST", "/v1/chat/completions/batch", "operation", "chat_completion_batch"),
    Route("POST", "/tokenize", "operation", "tokenize"),
    Route("POST", "/detokenize", "operation", "detokenize"),
    Route("GET", "/tokenizer_info", "query", "tokenizer_info"),
    Route("POST", "/v1/score", "operation", "score"),
    Route("POST", "/score", "operation", "score"),
    Route("POST", "/classify", "operation", "classify"),
    Route("POST", "/pooling", "operation", "pooling"),
    Route("POST", "/v2/embed", "operation", "embed"),
    Route("POST", "/v1/systemone", "operation", "decision"),
    Route("POST", "/v1/decisions", "operation", "decision"),
    Route("POST", "/generative_scoring", "operation", "generative_scoring"),
    Route("GET", "/v1/models", "models", "list_models"),
    Route("GET", "/v1/models/{*}", "model", "list_models"),
    Route("POST", "/v1/messages", "operation", "messages"),
    Route("POST", "/v1/messages/count_tokens", "operation", "count_tokens"),
    Route("POST", "/anthropic/v1/messages", "operation", "messages"),
    Route("POST", "/anthropic/v1/messages/count_tokens", "operation", "count_tokens"),
    Route("GET", "/anthropic/v1/models", "models", "list_models"),
    Route("GET", "/anthropic/v1/models/{*}", "model", "list_models"),
    Route("GET", "/health", "health", "health", True),
    Route("GET", "/ready", "ready", "ready"),
    Route("GET", "/metrics", "metrics", "metrics"),
    Route("GET", "/version", "version", "version"),
    Route("GET", "/load", "load", "load"),
)

# Routes of OpenAI's API and of gateways like it that vLLM has no operation for, and the operation that each would be.
_UNSUPPORTED: Tuple[Tuple[str, str, str], ...] = (
    ("POST", "/v1/images/edits", "image_edit"),
    ("POST", "/v1/images/variations", "image_variation"),
    ("POST", "/v1/ocr", "ocr"),
    ("POST", "/v1/responses/input_tokens", "count_tokens"),
    ("POST", "/v1/responses/compact", "compaction"),
    ("POST", "/v1/files", "file_upload"),
    ("GET", "/v1/files", "file_list"),
    ("GET", "/v1/files/{}", "file_retrieve"),
    ("DELETE", "/v1/files/{}", "file_delete"),
    ("GET", "/v1/files/{}/content", "file_content"),
    ("POST", "/v1/batches", "batch_create"),
    ("GET", "/v1/batches", "batch_list"),
    ("GET", "/v1/batches/{}", "batch_retrieve"),
    ("DELETE", "/v1/batches/{}", "batch_delete"),
    ("POST", "/v1/batches/{}/cancel", "batch_cancel"),
    ("GET", "/v1/batches/{}/results", "batch_results"),
    ("POST", "/v1/videos", "video_generation"),
    ("GET", "/v1/videos", "video_list"),
    ("GET", "/v1/videos/{}", "video_retrieve"),
    ("DELETE", "/v1/videos/{}", "video_delete"),
    ("GET", "/v1/videos/{}/content", "video_download"),
    ("POST", "/v1/videos/{}/remix", "video_remix"),
    ("POST", "/v1/containers", "container_create"),
    ("GET", "/v1/containers", "container_list"),
    ("GET", "/v1/containers/{}", "container_retrieve"),
    ("DELETE", "/v1/containers/{}", "container_delete"),
    ("POST", "/v1/containers/{}/files", "container_file_create"),
    ("GET", "/v1/containers/{}/files", "container_file_list"),
    ("GET", "/v1/containers/{}/files/{}", "container_file_retrieve"),
    ("DELETE", "/v1/containers/{}/files/{}", "container_file_delete"),
    ("GET", "/v1/containers/{}/files/{}/content", "container_file_content"),
)

ROUTES: Tuple[Route, ...] = _SERVED + tuple(
    Route(method, path, "unsupported", operation) for method, path, operation in _UNSUPPORTED
)

# Without a prefix of their own: asked of the gateway itself, not by a client of an API.
_BARE: FrozenSet[str] = frozenset(("/health", "/ready", "/metrics", "/version", "/load"))


def _paths(path: str) -> List[str]:
    """Return a path and its names under ``/openai``, where clients write it with and without ``/v1``."""
    if path in _BARE or path.startswith("/anthropic"):
        return [path]
    names = [path, "/openai" + path]
    if path.startswith("/v1/"):
        names.append("/openai" + path[3:])
    return names


_EXACT: Dict[str, Dict[str, Route]] = {}
_FOUND: Dict[Tuple[str, str], Found] = {}  # by method and exact path
_PATTERNS: List[Tuple[List[str], Dict[str, Route]]] = []


def _enter(route: Route, path: str) -> None:
    if "{" not in path:
        _EXACT.setdefault(path, {})[route.method] = route
        _FOUND[route.method, path] = Found(route)
        return
    segments = path.split("/")
    for known, methods in _PATTERNS:
        if known == segments:
            break
    else:
        methods = {}
        _PATTERNS.append((segments, methods))
    methods.setdefault(route.method, route)


for _route in ROUTES:
    for _path in _paths(_route.path):
        _enter(_route, _path)


def find(method: str, path: str) -> Found:
    """Return what a path leads to; ``HEAD`` is answered like ``GET``, and one slash at the end does no harm."""
    found = _FOUND.get((method, path))
    if found is not None:
        return found
    methods = _EXACT.get(path)
    rest = ""
    if methods is None:
        bare = path[:-1] if path.endswith("/") and path != "/" else path
        methods = _EXACT.get(bare)
        if methods is None:
            methods, rest = _match(bare)
            if rest:
                rest += path[len(bare):]  # the name of a model may end in a slash
    route = methods.get("GET" if method == "HEAD" else method)
    if route is not None:
        return Found(route, rest)
    names = set(methods)
    if names:
        names.add("OPTIONS")
    if "GET" in names:
        names.add("HEAD")
    return Found(None, rest, tuple(sorted(names)))


def meant(method: str, path: str) -> Optional[str]:
    """Return the path that one which leads nowhere was meant to be: slashes doubled, ``/v1`` missing or repeated."""
    once = re.sub(r"/v1(?:/v1)+(?=/|\Z)", "/v1", re.sub(r"/{2,}", "/", path))
    for candidate in (once, "/v1" + once):
        if candidate != path and find(method, candidate) != Found():
            return candidate
    return None


def _match(path: str) -> Tuple[Dict[str, Route], str]:
    segments = path.split("/")
    for pattern, methods in _PATTERNS:
        if pattern[-1] == "{*}":
            fixed = len(pattern) - 1
            if segments[:fixed] == pattern[:fixed] and any(segments[fixed:]):
                return methods, "/".join(segments[fixed:])
        elif len(pattern) == len(segments) and all(
            want == have or (want == "{}" and have) for want, have in zip(pattern, segments)
        ):
            return methods, ""
    return {}, ""
