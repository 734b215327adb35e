"""The stand-in's model: what it answers to a text, token by token. A token is a word and the space before it."""

import json
import re
import zlib
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from .directives import Plan
from .refusal import bad_request, plain_bad_request
from .schema import example

FINGERPRINT = "vllm-0.32.0-echo"
REASONING = "\nThe user wants to hear it again.\n"


class Token(NamedTuple):
    """One generated token; ``kind`` is reasoning, content, name or arguments, ``call`` the index of its tool call."""

    kind: str
    text: str
    call: int = 0


class Generation:
    """One choice: its tokens, why it ended, and the calls it makes."""

    def __init__(self, tokens: List[Token], finish_reason: str) -> None:
        self.tokens = tokens
        self.finish_reason = finish_reason
        self.stop_reason: Optional[str] = None
        self.count = len(tokens)
        # The tool calls are not whole when the tokens ran out within one.
        self.cut_call = False

    def text(self, *kinds: str) -> str:
        """Return the text of the tokens of these kinds."""
        return "".join(token.text for token in self.tokens if token.kind in kinds)

    @property
    def reasoning_tokens(self) -> int:
        """How many of the tokens are reasoning."""
        return sum(token.kind == "reasoning" for token in self.tokens)


def pieces(text: str) -> List[str]:
    """Split into words that keep the space before them; joined they are ``text`` again.

    >>> pieces("Hello  big world ")
    ['Hello', '  big', ' world ']
    """
    return re.findall(r"\s*\S+(?:\s+\Z)?|\s+\Z", text)


def token_id(text: str) -> int:
    """Return the id that a token's text always has."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % 50000


def logprob(text: str) -> float:
    """Return the logarithm of the probability that the stand-in claims for a token, between -1 and 0."""
    return -(token_id(text) % 1000) / 1024.0


def candidates(text: str, top: int) -> List[Tuple[str, float]]:
    """Return the ``top`` most likely tokens at a place, the one that was taken first."""
    return [(text if rank == 0 else " other%d" % rank, logprob(text) - rank) for rank in range(top)]


def prompt_logprobs(prompt: str, top: Optional[int]) -> Optional[List[Any]]:
    """Return what ``prompt_logprobs`` asks for: by token id, and null for the first token, before which is nothing."""
    if top is None:
        return None
    found: List[Any] = [None]
    for piece in pieces(prompt)[1:]:
        ranked = enumerate(candidates(piece, top + 1), 1)
        found.append({str(token_id(text)): {"logprob": value, "rank": rank, "decoded_token": text}
                      for rank, (text, value) in ranked})
    return found


def text_of(content: Any) -> str:
    """Return the text of a message's content: a string, or parts of which the text ones count."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def texts_of(given: Any) -> List[str]:
    """Return the texts of a prompt or an input: a text, a list of them, token ids or lists of token ids."""
    if isinstance(given, list) and (not given or not isinstance(given[0], int)):
        return [_joined(item) for item in given]
    return [_joined(given)]


def _joined(prompt: Any) -> str:
    return " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt or "")


def whole(body: Dict[str, Any], name: str, default: Optional[int] = None) -> Optional[int]:
    """Read an integer field as laxly as vLLM, which takes ``"5"`` (err_max_tokens_string)."""
    value = body.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise plain_bad_request("%s must be an integer, got %s." % (name, value), name) from None


def answer(body: Dict[str, Any], plan: Plan, heard: str) -> str:
    """Return the text that answers ``heard`` under the request's structured output, if it asks for one."""
    if plan.empty:
        return ""
    if plan.count is not None:
        return " ".join(str(number) for number in range(1, plan.count + 1))
    structured = _structured(body)
    return heard if structured is None else structured


def _structured(body: Dict[str, Any]) -> Optional[str]:
    asked = body.get("structured_outputs") or {}
    if "choice" in asked:
        if not asked["choice"]:
            raise plain_bad_request("You must provide at least one choice.", late=True)
        return str(asked["choice"][0])
    if asked.get("json") is not None:
        schema = asked["json"]
        return json.dumps(example(json.loads(schema) if isinstance(schema, str) else schema))
    response_format = body.get("response_format") or {}
    kind = response_format.get("type")
    if asked.get("json_object") or kind == "json_object":
        return "{}"
    if kind != "json_schema":
        return None
    if not response_format.get("json_schema"):
        raise bad_request("When response_format type is 'json_schema', the 'json_schema' field must be provided.",
                          "response_format")
    return json.dumps(example(response_format["json_schema"].get("schema") or {"type": "object"}))


def thinks(body: Dict[str, Any], plan: Plan) -> bool:
    """Say whether a chat answers with reasoning first: on ``!think`` or ``enable_thinking``, which wins when false."""
    wish = (body.get("chat_template_kwargs") or {}).get("enable_thinking")
    return plan.think if wish is None else bool(wish)


def calls(body: Dict[str, Any], plan: Plan, heard: str) -> List[Tuple[str, str]]:
    """Return the name and the JSON arguments of every tool that is called.

    A tool is called when ``tool_choice`` names it or is ``required`` (the first one then), when the text has its
    name or a long word of its name in it (``weather`` for ``get_weather``), or on ``!call N`` (the first N).
    """
    offered = [tool.get("function") or {} for tool in body.get("tools") or []]
    choice = body.get("tool_choice")
    if not offered or choice == "none":
        return []
    if isinstance(choice, dict):
        named = (choice.get("function") or {}).get("name")
        chosen = [tool for tool in offered if tool.get("name") == named]
        if not chosen:
            raise bad_request("The tool specified in `tool_choice` does not match any of the specified `tools`",
                              "tool_choice")
    else:
        number = max(plan.call, int(plan.broken_call))
        chosen = [offered[index % len(offered)] for index in range(number)]
        chosen = chosen or [tool for tool in offered if _mentioned(str(tool.get("name")), heard)]
        chosen = chosen or offered[:choice == "required"]
    if body.get("parallel_tool_calls") is False:
        chosen = chosen[:1]
    made = [(str(tool.get("name")), json.dumps(example(tool.get("parameters") or {"type": "object"})))
            for tool in chosen]
    return [(name, '{"broken":') for name, _ in made] if plan.broken_call else made


def _mentioned(name: str, heard: str) -> bool:
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if len(word) > 3]
    return name.lower() in heard.lower() or any(word in heard.lower() for word in words)


def generate(body: Dict[str, Any], plan: Plan, said: str, made: List[Tuple[str, str]], think: bool,
             budget: Optional[int]) -> Generation:
    """Return what is generated when ``said`` is the answer, or ``made`` the tool calls, within ``budget`` tokens."""
    tokens = [Token("reasoning", text) for text in pieces(REASONING)] if think else []
    for index, (name, arguments) in enumerate(made):
        tokens.append(Token("name", name, index))
        tokens += [Token("arguments", text, index) for text in pieces(arguments)]
    if not made:
        # After reasoning the content keeps the template's line ends (think_reasoning).
        tokens += [Token("content", text) for text in pieces("\n\n" + said if think and said else said)]
        if body.get("ignore_eos") and tokens and budget is not None:
            cycle = [Token("content", " " + token.text.strip()) for token in tokens if token.kind == "content"]
            while cycle and len(tokens) < budget:
                tokens += cycle[:budget - len(tokens)]
    generation = Generation(tokens, "tool_calls" if made and not isinstance(body.get("tool_choice"), dict) else "stop")
    # A text of just max_tokens ends with length too: the end itself would be one token more.
    if budget is not None and tokens and len(tokens) + (not made) > budget:
        generation = Generation(tokens[:budget], "length")
        generation.cut_call = any(token.kind == "name" for token in generation.tokens)
    _stop(generation, body)
    if plan.abort:
        generation.finish_reason = "abort"
    return generation


def _stop(generation: Generation, body: Dict[str, Any]) -> None:
    strings = body.get("stop") or []
    strings = [strings] if isinstance(strings, str) else list(strings)
    if "" in strings:
        raise plain_bad_request("stop cannot contain an empty string.")
    text = generation.text("content")
    found = [(text.find(string), string) for string in strings if string in text]
    if not found:
        return
    start, string = min(found)
    end = start + len(string)
    before = [token for token in generation.tokens if token.kind != "content"]
    # The tokens of the stop string are billed although they are not shown (chat_stop).
    generation.count = len(before) + len(pieces(text[:end]))
    shown = text[:end] if body.get("include_stop_str_in_output") else text[:start]
    generation.tokens = before + [Token("content", piece) for piece in pieces(shown)]
    generation.finish_reason, generation.stop_reason = "stop", string


def sampling_checks(body: Dict[str, Any], longest: int) -> None:
    """Refuse the sampling parameters that vLLM refuses most often, in its words."""
    if body.get("stream_options") and not body.get("stream"):
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")
    number = whole(body, "n", 1)
    if number is not None and number < 1:
        raise plain_bad_request("n must be at least 1, got %d." % number)
    if number is not None and number > 1 and body.get("temperature") in (0, 0.0):
        raise plain_bad_request("n must be 1 when using greedy sampling, got %d." % number)
    temperature = body.get("temperature")
    if isinstance(temperature, (int, float)) and not 0 <= temperature <= 2:
        raise bad_request("temperature must be in [0, 2], got %s." % float(temperature), "temperature",
                          float(temperature))
    for name in ("max_tokens", "max_completion_tokens"):
        limit = whole(body, name)
        if limit is not None and limit > longest:
            raise bad_request("%s=%d cannot be greater than max_model_len=%d. Please request fewer output tokens."
                              % (name, limit, longest), name, limit)


def length_check(tokens: int, longest: int) -> None:
    """Refuse a prompt that does not fit (err_context_too_long)."""
    if tokens > longest:
        raise bad_request(
            "This model's maximum context length is %d tokens. However, your prompt contains at least %d input tokens, "
            "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
            % (longest, tokens), "input_tokens", tokens)


def counts(prompt: int, completion: int) -> Dict[str, Any]:
    """Return a usage object's three numbers."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def usage(prompt: int, completion: int, reasoning: Optional[int] = None) -> Dict[str, Any]:
    """Return a usage object as an answer in one piece carries it."""
    details = None if reasoning is None else {"reasoning_tokens": reasoning}
    return dict(counts(prompt, completion), prompt_tokens_details=None, completion_tokens_details=details)


def running_usage(prompt: int, completion: int) -> Dict[str, Any]:
    """Return a usage object as every chunk carries it under ``continuous_usage_stats``."""
    return dict(counts(prompt, completion), completion_tokens_details=None)


def last_usage(counted: Dict[str, Any]) -> Dict[str, Any]:
    """Return a usage object as the last chunk of a stream carries it: without nulls (chat_stream_usage)."""
    return {name: value for name, value in counted.items() if value is not None}


def ids(texts: Iterable[str]) -> List[int]:
    """Return the ids of tokens."""
    return [token_id(text) for text in texts]


def in_turn(lines: List[List[Any]]) -> List[Any]:
    """Return the first of every line, the second of every line, and so on."""
    return [line[step] for step in range(max(map(len, lines))) for line in lines if step < len(line)]
