"""The stand-in's routes, and the way from a request to its answer."""

import json
from typing import Any, Callable, Dict, Optional, Tuple

from . import audio, chat, completions, messages, pooling, scoring, tokens
from .directives import Plan, parse
from .refusal import Refusal, detail, invalid, missing, plain_bad_request, problem, unknown_model, unreadable
from .reply import Reply, World, check, refused

VERSION = "0.32.0"
OPERATIONS = (
    "chat_completion", "text_completion", "embedding", "rerank", "transcription", "list_models",
    "chat_completion_batch", "messages", "count_tokens", "tokenize", "detokenize", "tokenizer_info", "score",
    "classify", "pooling", "embed", "translation", "decision", "generative_scoring",
)

# path -> (method, operation); an operation of None is always served.
ROUTES: Dict[str, Tuple[str, Optional[str]]] = {path: (method, operation) for method, operation, paths in (
    ("GET", None, "/health /ping /version /metrics /load"),
    ("GET", "list_models", "/v1/models"),
    ("POST", "chat_completion", "/v1/chat/completions"),
    ("POST", "text_completion", "/v1/completions"),
    ("POST", "embedding", "/v1/embeddings"),
    ("POST", "rerank", "/rerank /v1/rerank /v2/rerank"),
    ("POST", "transcription", "/v1/audio/transcriptions"),
    ("POST", "translation", "/v1/audio/translations"),
    ("POST", "chat_completion_batch", "/v1/chat/completions/batch"),
    ("POST", "messages", "/v1/messages"),
    ("POST", "count_tokens", "/v1/messages/count_tokens"),
    ("POST", "tokenize", "/tokenize"),
    ("POST", "detokenize", "/detokenize"),
    ("GET", "tokenizer_info", "/tokenizer_info"),
    ("POST", "score", "/score /v1/score"),
    ("POST", "classify", "/classify"),
    ("POST", "pooling", "/pooling"),
    ("POST", "embed", "/v2/embed"),
    ("POST", "decision", "/v1/systemone"),
    ("POST", "generative_scoring", "/generative_scoring"),
) for path in paths.split()}


def respond(path: str, headers: Dict[str, str], body: bytes, script: str, world: World) -> Reply:
    """Answer a request for one of ROUTES; whatever vLLM refuses comes back as its error.

    ``script`` holds directives that come before the request's own.
    """
    operation = ROUTES[path][1]
    if operation is None:
        return _always(path, world)
    plan, streaming, typed = Plan(), False, operation in ("messages", "count_tokens")
    try:
        plan = parse(script)
        if operation == "list_models":
            check(plan)
            reply = _models(world)
        elif operation == "tokenizer_info":
            check(plan)
            reply = Reply({"tokenizer_class": "EchoTokenizer", "model_max_length": world.max_model_len})
        else:
            prefix, read, required, heard, answer = _ANSWERS[operation]
            request = read(headers, body)
            streaming = operation in _STREAMED and audio.is_true(request.get("stream"))
            required(request)
            plan = parse((script + " " + heard(request)) if script else heard(request))
            check(plan)
            identity = _identity(prefix, request, world, operation in _POOLING)
            reply = answer(request, plan, identity, world)
    except Refusal as refusal:
        reply = refused(refusal, plan, streaming, typed)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as failure:
        # vLLM's schema names the field in such a case; the stand-in knows no more than that a type is wrong.
        strange = plain_bad_request("echo: a field has a type that cannot be read: %s" % failure)
        reply = refused(strange, plan, streaming)
    reply.plan = plan
    return reply


def _json(headers: Dict[str, str], raw: bytes) -> Dict[str, Any]:
    if not headers.get("content-type", "").lower().startswith("application/json"):
        # Not pydantic's words: vLLM wraps another error here (err_no_content_type).
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise Refusal(400, {"error": {"message": message, "type": "Bad Request", "param": None, "code": 400}})
    if headers.get("content-encoding", "identity") not in ("", "identity"):
        raise detail(400, "There was an error parsing the body")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise unreadable(raw) from None
    if body is None:
        raise invalid(missing("body", None))
    if not isinstance(body, dict):
        raise invalid(problem("model_attributes_type", "body",
                              "Input should be a valid dictionary or object to extract fields from", body))
    return body


def _identity(prefix: str, body: Dict[str, Any], world: World, pooling_route: bool) -> Dict[str, Any]:
    model = body.get("model")
    if model is not None and model not in world.models and not world.any_model:
        raise unknown_model(model, world.models, pooling_route)
    return {"id": prefix + world.request_id, "created": world.created, "model": model or world.models[0]}


def _needs(*names: str) -> Callable[[Dict[str, Any]], None]:
    def required(body: Dict[str, Any]) -> None:
        absent = [missing("body." + name, body) for name in names if name not in body]
        if absent:
            raise invalid(*absent)
    return required


def _needs_tools(body: Dict[str, Any], *names: str) -> None:
    """Raise Refusal for a tool that only Anthropic's servers have (messages_server_tool)."""
    _needs("model", "messages", *names)(body)
    absent = [missing("body.tools.%d.input_schema" % place, tool) for place, tool in enumerate(body.get("tools") or [])
              if "input_schema" not in tool]
    if absent:
        raise invalid(*absent)


def _needs_message(body: Dict[str, Any]) -> None:
    _needs_tools(body, "max_tokens")


# operation -> (prefix of the id, how a body is read, what it is refused for, where directives are read from, how it
# is answered)
_ANSWERS: Dict[str, Tuple[str, Callable[..., Any], Callable[..., Any], Callable[..., str], Callable[..., Reply]]] = {
    "chat_completion": ("chatcmpl-", _json, _needs("messages"), chat.heard, chat.chat),
    "text_completion": ("cmpl-", _json, _needs(), completions.heard, completions.complete),
    "embedding": ("embd-", _json, _needs(), pooling.heard_embedding, pooling.embed),
    "rerank": ("score-", _json, _needs("query", "documents"), pooling.heard_rerank, pooling.rerank),
    "transcription": ("transcribe-", audio.read_form, audio.checked, audio.heard, audio.transcribe),
    "translation": ("translate-", audio.read_form, audio.checked, audio.heard, audio.translate),
    "chat_completion_batch": ("chatcmpl-", _json, _needs("messages"), chat.heard_batch, chat.batch),
    "messages": ("chatcmpl-", _json, _needs_message, messages.heard, messages.answer),
    "count_tokens": ("", _json, _needs_tools, messages.heard, messages.count),
    "tokenize": ("", _json, tokens.needs_text, tokens.heard, tokens.tokenize),
    "detokenize": ("", _json, tokens.needs_tokens, lambda body: "", tokens.detokenize),
    "score": ("score-", _json, scoring.needs_pair, scoring.heard_pair, scoring.score),
    "classify": ("classify-", _json, scoring.needs_input, pooling.heard_embedding, scoring.classify),
    "pooling": ("pooling-", _json, scoring.needs_data, pooling.heard_embedding, scoring.pool),
    "embed": ("embd-", _json, scoring.needs_texts, scoring.heard_texts, scoring.embed),
    "decision": ("decision-", _json, _needs("state", "questions"), scoring.heard_state, scoring.decide),
    "generative_scoring": ("generative-scoring-", _json, _needs("query", "items", "label_token_ids"),
                           scoring.heard_query, scoring.score_items),
}
_STREAMED = ("chat_completion", "text_completion", "transcription", "translation", "messages")
_POOLING = ("embedding", "rerank", "score", "classify", "pooling", "embed")


def _always(path: str, world: World) -> Reply:
    if path == "/version":
        return Reply({"version": VERSION})
    if path == "/load":
        return Reply({"server_load": world.running})
    if path != "/metrics":
        return Reply()
    gauge = "vllm:num_requests_running"
    text = ("# HELP %s Number of requests in model execution batches.\n# TYPE %s gauge\n"
            '%s{engine="0",model_name="%s"} %s\n' % (gauge, gauge, gauge, world.models[0], float(world.running)))
    return Reply(text, headers={"content-type": "text/plain; version=1.0.0; charset=utf-8"})


def _models(world: World) -> Reply:
    return Reply({"object": "list", "data": [{
        "id": name, "object": "model", "created": world.created, "owned_by": "vllm", "root": name, "parent": None,
        "max_model_len": world.max_model_len, "permission": [{
            "id": "modelperm-" + world.request_id, "object": "model_permission", "created": world.created,
            "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True,
            "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False, "organization": "*",
            "group": None, "is_blocking": False}]} for name in world.models]})
