"""POST /v1/chat/completions: the replies and the chunks of vLLM 0.32.0, key for key."""

from typing import Any, Dict, List, Optional

from .directives import Plan, parse
from .generate import (FINGERPRINT, Generation, Token, answer, calls, candidates, generate, ids, in_turn, last_usage,
                       length_check, logprob, pieces, prompt_logprobs, running_usage, sampling_checks, text_of, thinks,
                       usage, whole)
from .refusal import bad_request, plain_bad_request
from .reply import Reply, World, headed

_MOST_LOGPROBS = 20


def heard(body: Dict[str, Any]) -> str:
    """Return the text that the directives are read from: the last message's, when a user wrote it."""
    last = _last(body)
    return text_of(last.get("content")) if last.get("role") != "tool" else ""


def _last(body: Dict[str, Any]) -> Dict[str, Any]:
    messages = [message for message in body.get("messages") or [] if isinstance(message, dict)]
    spoken = [message for message in messages if message.get("role") in ("user", "tool")]
    return (spoken or messages or [{}])[-1]


def chat(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer a chat. Raises Refusal for what vLLM refuses."""
    longest = world.max_model_len
    messages = body["messages"]
    if not messages:
        raise plain_bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message.")
    sampling_checks(body, longest)
    prompt = "\n".join(text_of(message.get("content")) for message in messages)
    prompt_tokens = max(1, len(pieces(prompt)))
    length_check(prompt_tokens, longest)
    made = choices(body, plan, longest - prompt_tokens)
    counted = usage(prompt_tokens, sum(choice.count for choice in made),
                    sum(choice.reasoning_tokens for choice in made) if thinks(body, plan) else None)
    shape = _Shape(body, identity, prompt, counted)
    if body.get("stream"):
        return Reply(events=shape.chunks(made), tokens=counted["completion_tokens"])
    return Reply(shape.completion(made), tokens=counted["completion_tokens"])


def batch(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer several chats at once (chat_batch); the directives are the first one's."""
    replies = []
    for place, messages in enumerate(body["messages"]):
        asked = {**body, "messages": messages}
        replies.append(chat(asked, plan if place == 0 else parse(heard(asked)), identity, world))
    whole: Dict[str, Any] = replies[0].payload
    for place, reply in enumerate(replies[1:], 1):
        whole["choices"] += [{**choice, "index": place} for choice in reply.payload["choices"]]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            whole["usage"][name] += reply.payload["usage"][name]
    return Reply(whole, tokens=sum(reply.tokens for reply in replies))


def heard_batch(body: Dict[str, Any]) -> str:
    """Return the text that a batch's directives are read from: the first chat's."""
    return heard({**body, "messages": (body["messages"] or [[]])[0]})


def choices(body: Dict[str, Any], plan: Plan, room: int) -> List[Generation]:
    """Return what is generated for each choice of a chat."""
    _check_logprobs(body)
    for name in ("max_tokens", "max_completion_tokens"):
        limit = whole(body, name)
        if limit is not None and limit < 1:
            raise bad_request("max_tokens must be at least 1, got %d." % limit, "max_tokens", limit)
    budget = whole(body, "max_completion_tokens", whole(body, "max_tokens", room))
    budget = room if budget is None else min(budget, room)
    last = _last(body)
    if last.get("role") == "tool":
        said, made = "The tool said: " + text_of(last.get("content")), []
    else:
        said = "You said: " + plan.text if plan.text else "You said nothing."
        made = calls(body, plan, plan.text)
    said = answer(body, plan, said)
    number = whole(body, "n", 1) or 1
    texts = [said] + ["%s (%d)" % (said, index) for index in range(2, number + 1)]
    return [generate(body, plan, text, made, thinks(body, plan), budget) for text in texts]


def _check_logprobs(body: Dict[str, Any]) -> None:
    top = whole(body, "top_logprobs", 0) or 0
    if top and not body.get("logprobs"):
        raise bad_request("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    if top > _MOST_LOGPROBS:
        raise bad_request("Requested sample logprobs of %d, which is greater than max allowed: %d"
                          % (top, _MOST_LOGPROBS), "logprobs", top, late=True)


class _Shape:
    """Prints generations as one completion or as chunks."""

    def __init__(self, body: Dict[str, Any], identity: Dict[str, Any], prompt: str, counted: Dict[str, Any]) -> None:
        self._body = body
        self._identity = identity
        self._counted = counted
        self._prompt = prompt
        self._forced = body.get("tool_choice") == "required" or isinstance(body.get("tool_choice"), dict)
        self._reasoning_shown = body.get("include_reasoning") is not False
        self._with_ids = bool(body.get("return_token_ids"))
        self._prompt_ids = ids(pieces(prompt)) if self._with_ids else None
        self._prompt_text = prompt if body.get("return_prompt_text") else None
        options = body.get("stream_options") or {}
        self._last_usage = bool(options.get("include_usage"))
        self._every_usage = self._last_usage and bool(options.get("continuous_usage_stats"))

    def completion(self, generations: List[Generation]) -> Dict[str, Any]:
        choices = [{
            "index": index, "message": self._message(generation), "logprobs": self._logprobs(generation.tokens),
            "finish_reason": generation.finish_reason, "stop_reason": generation.stop_reason,
            "token_ids": self._ids(generation.tokens), "routed_experts": None,
        } for index, generation in enumerate(generations)]
        return headed(
            self._identity, "chat.completion", choices=choices, service_tier=None, system_fingerprint=FINGERPRINT,
            usage=self._counted, prompt_logprobs=prompt_logprobs(self._prompt, whole(self._body, "prompt_logprobs")),
            prompt_token_ids=self._prompt_ids, prompt_text=self._prompt_text, kv_transfer_params=None,
            ec_transfer_params=None, metrics=None)

    def _message(self, generation: Generation) -> Dict[str, Any]:
        made = self._calls(generation)
        reasoning = generation.text("reasoning") or None
        content: Optional[str] = generation.text("content")
        if generation.cut_call:
            # A call that max_tokens cuts comes back as the text that the model wrote (chat_tools_truncated).
            content = '<tool_call>\n{"name": "%s", "arguments": %s' % (
                generation.text("name"), generation.text("arguments"))
        elif made or (reasoning and not content):
            content = "" if made and self._forced else None
        message: Dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": None,
                                   "audio": None, "function_call": None}
        if made:
            message["tool_calls"] = made
        message["reasoning"] = reasoning if self._reasoning_shown else None
        return message

    def _calls(self, generation: Generation) -> List[Dict[str, Any]]:
        if generation.cut_call:
            return []
        made: List[Dict[str, Any]] = []
        for token in generation.tokens:
            if token.kind == "name":
                made.append({"id": self._call_id(token.call), "type": "function",
                             "function": {"name": token.text, "arguments": ""}})
            elif token.kind == "arguments":
                made[-1]["function"]["arguments"] += token.text
        return made

    def _call_id(self, call: int) -> str:
        return "chatcmpl-tool-%s-%d" % (str(self._identity["id"])[len("chatcmpl-"):], call)

    def _ids(self, tokens: List[Token]) -> Optional[List[int]]:
        return ids(token.text for token in tokens) if self._with_ids else None

    def _logprobs(self, tokens: List[Token]) -> Optional[Dict[str, Any]]:
        if not self._body.get("logprobs"):
            return None
        top = whole(self._body, "top_logprobs", 0) or 0
        return {"content": [dict(_entry(token.text, logprob(token.text)), top_logprobs=[
            _entry(text, value) for text, value in candidates(token.text, top)]) for token in tokens]}

    def chunks(self, generations: List[Generation]) -> List[Dict[str, Any]]:
        """Return every chunk of the stream: roles, then the choices' tokens in turn, then usage."""
        asked = {"prompt_token_ids": self._prompt_ids, "prompt_text": self._prompt_text}
        role = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        chunks = [self._chunk({"index": index, **role}, 0, **asked) for index in range(len(generations))]
        chunks += in_turn([self._choice_chunks(index, generation) for index, generation in enumerate(generations)])
        if self._last_usage:
            chunks.append(self._chunk(None, 0, system_fingerprint=FINGERPRINT))
        else:
            chunks[-1]["system_fingerprint"] = FINGERPRINT
        return chunks

    def _choice_chunks(self, index: int, generation: Generation) -> List[Dict[str, Any]]:
        shown = [(number + 1, token) for number, token in enumerate(generation.tokens)
                 if token.kind != "reasoning" or self._reasoning_shown]
        # Length, a stop string and an abort end within a token; a stop comes after the last (chat_stream_length).
        merged = bool(shown) and (generation.finish_reason in ("length", "abort") or generation.stop_reason is not None)
        chunks = []
        for number, token in shown[:-1] if merged else shown:
            choice = {"index": index, "delta": self._delta(token), "logprobs": self._logprobs([token]),
                      "finish_reason": None, "token_ids": self._ids([token])}
            chunks.append(self._chunk(choice, number))
        last = [shown[-1][1]] if merged else []
        finish = {"index": index, "delta": self._delta(last[0]) if last else {},
                  "logprobs": self._logprobs(last) if last else None, "finish_reason": generation.finish_reason,
                  "stop_reason": generation.stop_reason, "token_ids": self._ids(last)}
        return chunks + [self._chunk(finish, generation.count)]

    def _delta(self, token: Token) -> Dict[str, Any]:
        if token.kind == "reasoning":
            return {"reasoning": token.text}
        if token.kind == "content":
            return {"content": token.text, **({} if self._reasoning_shown else {"reasoning": None})}
        call: Dict[str, Any] = {"index": token.call, "function": {token.kind: token.text}}
        if token.kind == "name":
            call = {"id": self._call_id(token.call), "type": "function", **call}
        return {"content": None, "tool_calls": [call]}

    def _chunk(self, choice: Optional[Dict[str, Any]], count: int, **more: Any) -> Dict[str, Any]:
        chunk = headed(self._identity, "chat.completion.chunk", choices=[] if choice is None else [choice])
        if choice is None:
            chunk["usage"] = last_usage(self._counted)
        elif self._every_usage:
            chunk["usage"] = running_usage(self._counted["prompt_tokens"], count)
        return dict(chunk, **more)


def _entry(text: str, value: float) -> Dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "surrogatepass"))}
