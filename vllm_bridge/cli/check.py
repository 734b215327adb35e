"""Whether a server is there, what it serves and how soon it begins to answer."""

import argparse
import io
import time
from typing import Any, Callable, Dict, List, Tuple

from .answers import print_json
from ..errors import BadRequestError, BridgeError, NotFoundError
from .servers import look_at, told_of
from .terminal import ODD_ANSWER, Terminal, odd_answer, one_line
from ..vllm import VLLMProvider

__all__ = ["check"]

_TOKENS = 16
_PATIENCE = 30.0  # seconds of silence after which a server counts as stuck, unless --timeout says otherwise

Finding = Dict[str, Any]


def check(provider: VLLMProvider, asked: argparse.Namespace, terminal: Terminal) -> int:
    """Ask every model, or the one asked for, for something small; return 0 if all of them answered."""
    provider = provider.with_options(max_retries=0)
    if asked.timeout is None:
        provider = provider.with_options(timeout=_PATIENCE, stream_idle_timeout=_PATIENCE)
    started = time.perf_counter()
    listed = provider.list_models()
    url = ", ".join(str(key.url) for key in provider.config.resolved_keys())
    report: Finding = {"url": url, "seconds": time.perf_counter() - started, "models": []}
    several = "key_statuses" in listed
    if several:
        report["servers"] = look_at(provider)
    if not asked.json:
        if several:
            _show_servers(report["servers"], terminal)
        else:
            terminal.line("%s is there, it listed its models in %s" % (url, _ms(report["seconds"])))
    models: List[Any] = [model for model in listed.data if asked.model in (None, model.get("id"))]
    if asked.model and not models:
        models = [{"id": asked.model}]
    for model in models:
        finding = _probe(provider, str(model.get("id")))
        finding["max_model_len"] = model.get("max_model_len")
        report["models"].append(finding)
        if not asked.json:
            terminal.line(_sentence(finding))
            terminal.flush()
    report["ok"] = bool(report["models"]) and all(finding["ok"] for finding in report["models"])
    if report["ok"] and not several:
        report["servers"] = look_at(provider)
        load = report["servers"][0]["load"]
        if not asked.json and load is not None and any(load.values()):
            terminal.line("%s has %s" % (url, told_of(report["servers"][0])))
    if asked.json:
        print_json(report, terminal)
    elif not report["models"]:
        terminal.complain("the server lists no model")
    else:
        bad = [finding["id"] for finding in report["models"] if not finding["ok"]]
        terminal.line("not ok: %s" % ", ".join(bad) if bad else "ok")
    return 0 if report["ok"] else 1


def _show_servers(standings: List[Finding], terminal: Terminal) -> None:
    for each in standings:
        told = told_of(each)
        if each["state"] == "away":
            terminal.line("%s %s" % (each["url"], told))
        else:
            has = ", ".join(map(one_line, each["models"])) or "no model"
            terminal.line("%s is there%s: %s" % (each["url"], " (%s)" % told if told else "", has))


def _probe(provider: VLLMProvider, model: str) -> Finding:
    """Try the operations one after another: a server does not tell which one its model is for."""
    finding: Finding = {"id": model, "ok": False}
    for operation, probe in _PROBES:
        try:
            finding.update(probe(provider, model), ok=True, operation=operation)
            return finding
        except NotFoundError as error:
            finding.setdefault("error", str(error))
            if error.payload != {"detail": "Not Found"}:
                return finding
        except BadRequestError as error:
            finding["error"] = str(error)
            if operation != "chat":  # a model without a chat template refuses chats, and completes texts
                return finding
        except BridgeError as error:
            finding["error"] = str(error)
            return finding
        except ODD_ANSWER as error:
            finding["error"] = odd_answer(error)
            return finding
    return finding


def _chat(provider: VLLMProvider, model: str) -> Finding:
    return _timed(lambda: provider.chat_completion_stream(
        model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=_TOKENS, temperature=0))


def _completion(provider: VLLMProvider, model: str) -> Finding:
    return _timed(lambda: provider.text_completion_stream(
        model=model, prompt="Hello", max_tokens=_TOKENS, temperature=0))


def _timed(ask: Callable[[], Any]) -> Finding:
    started = time.perf_counter()
    finding: Finding = {"first_token_seconds": None, "server": None, "tokens": None}
    with ask() as stream:
        for chunk in stream:
            delta = [choice.get("delta") or {} for choice in chunk["choices"][:1]]
            if finding["first_token_seconds"] is None and (chunk.text or (delta and delta[0].get("reasoning"))):
                finding["first_token_seconds"] = time.perf_counter() - started
            finding["server"] = chunk.get("system_fingerprint") or finding["server"]
            finding["tokens"] = (chunk.get("usage") or {}).get("completion_tokens", finding["tokens"])
    finding["seconds"] = time.perf_counter() - started
    return finding


def _embedding(provider: VLLMProvider, model: str) -> Finding:
    started = time.perf_counter()
    reply = provider.embedding(model=model, input="Hello")
    return {"seconds": time.perf_counter() - started, "dimensions": len(reply.data[0].embedding)}


def _rerank(provider: VLLMProvider, model: str) -> Finding:
    started = time.perf_counter()
    provider.rerank(model=model, query="Hello", documents=["Hello", "Goodbye"])
    return {"seconds": time.perf_counter() - started}


def _transcription(provider: VLLMProvider, model: str) -> Finding:
    import wave  # only a check of a transcription model needs it

    silence = io.BytesIO()
    with wave.open(silence, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(2 * 16000))
    started = time.perf_counter()
    provider.transcription(model=model, file=("silence.wav", silence.getvalue()))
    return {"seconds": time.perf_counter() - started}


_PROBES: List[Tuple[str, Callable[[VLLMProvider, str], Finding]]] = [
    ("chat", _chat),
    ("completions", _completion),
    ("embeddings", _embedding),
    ("rerank", _rerank),
    ("transcription", _transcription),
]


def _sentence(finding: Finding) -> str:
    name = finding["id"]
    if finding["max_model_len"]:
        name += " (%s tokens)" % finding["max_model_len"]
    if not finding["ok"]:
        return "%s does not answer: %s" % (name, " ".join(finding["error"].split()))
    text = "%s answers %s" % (name, finding["operation"])
    if finding.get("first_token_seconds") is not None:
        text += ": first token after %s" % _ms(finding["first_token_seconds"])
        if finding["tokens"]:
            text += ", %s tokens in %s" % (finding["tokens"], _ms(finding["seconds"]))
    else:
        text += " in %s" % _ms(finding["seconds"])
    if finding.get("dimensions"):
        text += ", %d dimensions" % finding["dimensions"]
    if finding.get("server"):
        text += " (%s)" % finding["server"]
    return text


def _ms(seconds: float) -> str:
    return "%.0f ms" % (1000 * seconds) if seconds < 1 else "%.1f s" % seconds
