"""Requests that the live tests make: a name, and the fields beside model. A tiny model answers them to the letter."""

from typing import Any, Dict

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": {
        "type": "object", "required": ["city"],
        "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "get_time", "parameters": {
        "type": "object", "properties": {"zone": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "properties": {}}}},
]
PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}


def user(text: str, **fields: Any) -> Dict[str, Any]:
    """One user message at temperature 0."""
    return dict({"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 300}, **fields)


CHAT: Dict[str, Dict[str, Any]] = {
    "plain": user("hello"),
    "unicode": user("unicode"),
    "count": user("count"),
    "empty": user("empty"),
    "length": user("count", max_tokens=7),
    "one token": user("hello", max_tokens=1),
    "system and parts": dict(user("x"), messages=[
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]}]),
    "stop": user("count", stop=[" 10"]),
    "stop included": user("count", stop=[" 10"], include_stop_str_in_output=True),
    "two choices": user("hello", n=2, temperature=1, seed=1, top_k=1),
    "logprobs": user("hello", logprobs=True, top_logprobs=2),
    "weather": user("weather", tools=TOOLS),
    "two tools": user("two tools", tools=TOOLS),
    "one of two tools": user("two tools", tools=TOOLS, parallel_tool_calls=False),
    "no arguments": user("no args", tools=TOOLS),
    "named tool": user("weather", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}}),
    "required tool": user("weather", tools=TOOLS[:1], tool_choice="required"),
    "tools unused": user("hello", tools=TOOLS),
    "tools forbidden": user("hello", tools=TOOLS, tool_choice="none"),
    "schema": user("json", response_format={
        "type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}),
    "json object": user("json", response_format={"type": "json_object"}),
    "choice": user("hello", structured_outputs={"choice": ["red", "green"]}),
    "regex": user("hello", structured_outputs={"regex": "[0-9]{4}"}),
    "vllm's own": user("hello", top_k=5, min_p=0.1, repetition_penalty=1.0, min_tokens=2, skip_special_tokens=True,
                       chat_template_kwargs={"enable_thinking": False}, ignore_eos=False),
    "token ids": user("hello", return_token_ids=True),
    "many tokens": user("count", ignore_eos=True, max_tokens=400),
    "after a tool": dict(user("x"), messages=[
        {"role": "user", "content": "weather"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call-1", "type": "function", "function": {
            "name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}}]},
        {"role": "tool", "tool_call_id": "call-1", "content": "21C"}]),
}
REASONING: Dict[str, Dict[str, Any]] = {
    "think": user("think"),
    "only think": user("only think"),
    "think then tool": user("think then tool", tools=TOOLS),
    "thinking closed": user("hello", chat_template_kwargs={"enable_thinking": False}),
    "reasoning hidden": user("think", include_reasoning=False),
}
TEXT: Dict[str, Dict[str, Any]] = {
    "plain": {"prompt": "hello", "temperature": 0, "max_tokens": 20},
    "default length": {"prompt": "count", "temperature": 0},
    "two prompts": {"prompt": ["hello", "count"], "temperature": 0, "max_tokens": 8},
    "token ids": {"prompt": [30, 31, 32], "temperature": 0, "max_tokens": 5},
    "lists of ids": {"prompt": [[30, 31], [32]], "temperature": 0, "max_tokens": 5},
    "two choices": {"prompt": "hello", "temperature": 1, "top_k": 1, "seed": 3, "n": 2, "max_tokens": 6},
    "echo": {"prompt": "hello", "temperature": 0, "max_tokens": 4, "echo": True},
    "logprobs": {"prompt": "hello", "temperature": 0, "max_tokens": 4, "logprobs": 2},
    "stop": {"prompt": "count", "temperature": 0, "max_tokens": 30, "stop": ["a", "e", "i"]},
    "regex": {"prompt": "hello", "temperature": 0, "max_tokens": 10, "structured_outputs": {"regex": "[0-9]{4}"}},
}
LONG: Dict[str, Any] = user("count", ignore_eos=True, max_tokens=900)
