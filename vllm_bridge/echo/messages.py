"""POST /v1/messages and its token counter: Anthropic's shapes as vLLM 0.32.0 writes them."""

import json
from typing import Any, Dict, Iterator, List, Tuple

from . import chat
from .directives import Plan
from .generate import Generation, length_check, pieces, sampling_checks, text_of
from .refusal import plain_bad_request
from .reply import Reply, World

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_BLOCKS = {"reasoning": ("thinking", "thinking_delta", "thinking"), "content": ("text", "text_delta", "text")}


def as_chat(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return a request as the chat that it is."""
    messages: List[Dict[str, Any]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": text_of(body["system"])})
    for message in body.get("messages") or []:
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        results = [block for block in blocks if block.get("type") == "tool_result"]
        messages += [{"role": "tool", "content": text_of(result.get("content"))} for result in results]
        texts = [block for block in blocks if block.get("type") == "text"]
        if texts or not results:
            messages.append({"role": message.get("role"), "content": texts})
    wire = {**body, "messages": messages, "stop": body.get("stop_sequences")}
    wire["tools"] = [{"type": "function", "function": {
        "name": tool["name"], "parameters": tool["input_schema"]}} for tool in body.get("tools") or []]
    choice = body.get("tool_choice") or {}
    wire["tool_choice"] = {"any": "required", "none": "none"}.get(str(choice.get("type")), "auto")
    if choice.get("type") == "tool":
        wire["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    if (body.get("thinking") or {}).get("type") in ("enabled", "adaptive"):
        wire.setdefault("chat_template_kwargs", {"enable_thinking": True})
    return wire


def heard(body: Dict[str, Any]) -> str:
    """Return the text that the directives are read from: the last message's, when a user wrote it."""
    return chat.heard(as_chat(body))


def _prompt_tokens(wire: Dict[str, Any]) -> int:
    return max(1, len(pieces("\n".join(text_of(message.get("content")) for message in wire["messages"]))))


def count(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Count the tokens of a request (messages_count_tokens)."""
    tokens = _prompt_tokens(as_chat(body))
    return Reply({"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}})


def answer(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer a request. Raises Refusal for what vLLM refuses."""
    wire = as_chat(body)
    if not wire["messages"]:
        raise plain_bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message.")
    sampling_checks(wire, world.max_model_len)
    before = _prompt_tokens(wire)
    length_check(before, world.max_model_len)
    generation = chat.choices(wire, plan, world.max_model_len - before)[0]
    blocks = _blocks(generation, identity)
    usage = {"input_tokens": before, "output_tokens": generation.count}
    reason = "stop_sequence" if generation.stop_reason else _REASONS.get(generation.finish_reason, "end_turn")
    ends = {"stop_reason": reason, "stop_sequence": generation.stop_reason}
    head = {"id": identity["id"], "type": "message", "role": "assistant", "content": [], "model": identity["model"]}
    if body.get("stream"):
        start = {**head, "stop_reason": None, "stop_sequence": None,
                 "usage": {"input_tokens": before, "output_tokens": 0}}
        events = [{"type": "message_start", "message": start}, *_events(blocks),
                  {"type": "message_delta", "delta": ends, "usage": usage}, {"type": "message_stop"}]
        return Reply(events=events, tokens=generation.count, typed=True)
    whole = {**head, "content": [_whole(*block) for block in blocks], **ends, "usage": usage}
    return Reply({name: value for name, value in whole.items() if value is not None}, tokens=generation.count)


Block = Tuple[Dict[str, Any], List[str]]


def _blocks(generation: Generation, identity: Dict[str, Any]) -> List[Block]:
    """Return the blocks of an answer: what each begins as, and its pieces."""
    blocks: List[Block] = []
    last = ""
    for token in generation.tokens:
        if token.kind == "name":
            call = "chatcmpl-tool-%s-%d" % (str(identity["id"])[len("chatcmpl-"):], token.call)
            blocks.append(({"type": "tool_use", "id": call, "name": token.text, "input": {}}, []))
        elif token.kind == "arguments":
            blocks[-1][1].append(token.text)
        else:
            if token.kind != last:
                kind, _, member = _BLOCKS[token.kind]
                blocks.append(({"type": kind, member: ""}, []))
            blocks[-1][1].append(token.text)
        last = token.kind
    return blocks


def _whole(start: Dict[str, Any], texts: List[str]) -> Dict[str, Any]:
    text = "".join(texts)
    if start["type"] != "tool_use":
        signature = {"signature": "echo"} if start["type"] == "thinking" else {}
        return {**start, start["type"]: text, **signature}
    try:
        return {**start, "input": json.loads(text or "{}")}
    except ValueError:
        return start


def _events(blocks: List[Block]) -> Iterator[Dict[str, Any]]:
    for index, (start, texts) in enumerate(blocks):
        yield {"type": "content_block_start", "content_block": start, "index": index}
        for text in texts:
            delta = {"type": "input_json_delta", "partial_json": text}
            if start["type"] != "tool_use":
                delta = {"type": start["type"] + "_delta", start["type"]: text}
            yield {"type": "content_block_delta", "delta": delta, "index": index}
        if start["type"] == "thinking":
            signed = {"type": "signature_delta", "signature": "echo"}
            yield {"type": "content_block_delta", "delta": signed, "index": index}
        yield {"type": "content_block_stop", "index": index}
