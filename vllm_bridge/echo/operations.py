"""The stand-in's routes, and the way from a request to its answer."""

import json
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import audio
from . import chat
from . import completions
from . import pooling
from .directives import Plan, parse
from .refusal import Refusal, invalid, problem, missing, plain_bad_request, unknown_model, unreadable
from .reply import Reply, check, refused

VERSION = "0.32.0"
OPERATIONS = ("chat_completion", "text_completion", "embedding", "rerank", "transcription", "list_models")

# path -> (method, operation); an operation of None is always served.
ROUTES: Dict[str, Tuple[str, Optional[str]]] = {
    "/health": ("GET", None),
    "/ping": ("GET", None),
    "/version": ("GET", None),
    "/metrics": ("GET", None),
    "/v1/models": ("GET", "list_models"),
    "/v1/chat/completions": ("POST", "chat_completion"),
    "/v1/completions": ("POST", "text_completion"),
    "/v1/embeddings": ("POST", "embedding"),
    "/rerank": ("POST", "rerank"),
    "/v1/rerank": ("POST", "rerank"),
    "/v2/rerank": ("POST", "rerank"),
    "/v1/audio/transcriptions": ("POST", "transcription"),
}


class World(NamedTuple):
    """What an answer depends on besides the request."""

    models: Sequence[str]
    embedding_size: int
    max_model_len: int
    created: int
    request_id: str
    running: int


class Question(NamedTuple):
    """One request: ``script`` holds directives that come before its own."""

    content_type: str
    content_encoding: str
    body: bytes
    script: str


class Answer(NamedTuple):
    """A reply, and the plan by which it is sent."""

    reply: Reply
    plan: Plan


def respond(path: str, question: Question, world: World) -> Answer:
    """Answer a request for one of ROUTES; whatever vLLM refuses comes back as its error."""
    operation = ROUTES[path][1]
    if operation is None:
        return Answer(_always(path, world), Plan())
    plan, streaming = Plan(), False
    try:
        plan = parse(question.script)
        if operation == "list_models":
            check(plan)
            return Answer(_models(world), plan)
        if operation == "transcription":
            form = audio.read_form(question.content_type, question.body)
            streaming = form.true("stream")
            plan = _plan(question, audio.heard(form))
            check(plan)
            audio.checked(form)
            identity = _identity("transcribe-", dict(form.fields), world, pooling_route=False)
            return Answer(audio.transcribe(form, plan, identity), plan)
        body = _json(question)
        prefix, needed, heard, answer = _ANSWERS[operation]
        streaming = bool(body.get("stream")) and operation in ("chat_completion", "text_completion")
        pooling.required(body, needed)
        plan = _plan(question, heard(body))
        check(plan)
        identity = _identity(prefix, body, world, operation in ("embedding", "rerank"))
        return Answer(answer(body, plan, identity, world), plan)
    except Refusal as refusal:
        return Answer(refused(refusal, plan, streaming), plan)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as failure:
        # vLLM's schema names the field in such a case; the stand-in knows no more than that a type is wrong.
        strange = plain_bad_request("echo: a field has a type that cannot be read: %s" % failure)
        return Answer(refused(strange, plan, streaming), plan)


def _plan(question: Question, text: str) -> Plan:
    return parse(question.script + " " + text) if question.script else parse(text)


def _json(question: Question) -> Dict[str, Any]:
    if not question.content_type.lower().startswith("application/json"):
        # Not pydantic's words: vLLM wraps another error here (err_no_content_type).
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise Refusal(400, {"error": {"message": message, "type": "Bad Request", "param": None, "code": 400}})
    if question.content_encoding not in ("", "identity"):
        raise Refusal(400, {"detail": "There was an error parsing the body"})
    try:
        body = json.loads(question.body)
    except (ValueError, RecursionError):
        raise unreadable(question.body) from None
    if body is None:
        raise invalid(missing("body", None))
    if not isinstance(body, dict):
        raise invalid(problem("model_attributes_type", "body",
                              "Input should be a valid dictionary or object to extract fields from", body))
    return body


def _identity(prefix: str, body: Dict[str, Any], world: World, pooling_route: bool) -> Dict[str, Any]:
    model = body.get("model")
    if model is not None and model not in world.models:
        raise unknown_model(model, world.models, pooling_route)
    return {"id": prefix + world.request_id, "created": world.created, "model": model or world.models[0]}


def _chat(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    return chat.chat(body, plan, identity, world.max_model_len)


def _complete(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    return completions.complete(body, plan, identity, world.max_model_len)


def _embed(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    return pooling.embed(body, plan, identity, world.embedding_size)


def _rerank(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    return pooling.rerank(body, plan, identity)


_Answering = Callable[[Dict[str, Any], Plan, Dict[str, Any], World], Reply]
# operation -> (prefix of the id, required fields, where directives are read from, how it is answered)
_ANSWERS: Dict[str, Tuple[str, List[str], Callable[[Dict[str, Any]], str], _Answering]] = {
    "chat_completion": ("chatcmpl-", ["messages"], chat.heard, _chat),
    "text_completion": ("cmpl-", [], completions.heard, _complete),
    "embedding": ("embd-", [], pooling.heard_embedding, _embed),
    "rerank": ("score-", ["query", "documents"], pooling.heard_rerank, _rerank),
}


def _always(path: str, world: World) -> Reply:
    if path == "/version":
        return Reply({"version": VERSION})
    if path == "/metrics":
        return Reply(_metrics(world), headers={"content-type": "text/plain; version=1.0.0; charset=utf-8"})
    return Reply()


def _metrics(world: World) -> str:
    gauge = "vllm:num_requests_running"
    lines = ["# HELP %s Number of requests in model execution batches." % gauge, "# TYPE %s gauge" % gauge,
             '%s{engine="0",model_name="%s"} %s' % (gauge, world.models[0], float(world.running))]
    return "\n".join(lines) + "\n"


def _models(world: World) -> Reply:
    return Reply({"object": "list", "data": [{
        "id": name, "object": "model", "created": world.created, "owned_by": "vllm", "root": name, "parent": None,
        "max_model_len": world.max_model_len, "permission": [{
            "id": "modelperm-" + world.request_id, "object": "model_permission", "created": world.created,
            "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True,
            "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False, "organization": "*",
            "group": None, "is_blocking": False}]} for name in world.models]})
