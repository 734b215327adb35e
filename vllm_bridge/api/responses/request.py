"""Responses request → chat request."""

from typing import Any, Callable, Dict, List, Optional, Tuple

from ...errors import BadRequestError
from .input import Conversation
from .response import ResponseContext
from .sealing import Seal
from .tools import Toolbox

__all__ = ["to_chat"]

# Fields that need an earlier call to be remembered, and what to do instead.
_STATEFUL = {
    "previous_response_id": "send the earlier input and output items in input",
    "conversation": "send the earlier items of the conversation in input",
    "background": "leave it out and wait for the answer, or stream it",
    "prompt": "send the text of the prompt template in instructions and input",
}
# Fields that are converted below, or that mean nothing to a chat request.
_CONVERTED = frozenset(_STATEFUL) | {
    "input",
    "instructions",
    "max_output_tokens",
    "reasoning",
    "text",
    "tools",
    "tool_choice",
    "include",
    "truncation",
    "max_tool_calls",
}
_LOGPROBS = "message.output_text.logprobs"


def to_chat(
    body: Dict[str, Any], seal: Optional[Seal] = None, clock: Optional[Callable[[], float]] = None
) -> Tuple[Dict[str, Any], ResponseContext]:
    """Return the chat request for a Responses request, and what its Response must know.

    `seal` makes and reads ``encrypted_content``, `clock` returns the seconds since the epoch, for ``completed_at``.
    Every field that is not the Responses API's own goes through as it is. Raise `BadRequestError`, its ``param`` set,
    for what cannot be asked of a server that remembers nothing.
    """
    body = {key: value for key, value in body.items() if value is not None}
    _refuse_state(body)
    toolbox = Toolbox()
    if "tools" in body:
        toolbox.add_all(body["tools"], "tools")
    talk = Conversation(toolbox, seal)
    instructions = body.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise BadRequestError("instructions must be a string", param="instructions")
        talk.instruct(instructions)
    talk.add(_input(body))

    chat = {key: value for key, value in body.items() if key not in _CONVERTED}
    chat["messages"] = talk.messages()
    if "max_output_tokens" in body:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    _reasoning(body.get("reasoning"), chat)
    _text(body.get("text"), chat)
    _logprobs(body, chat)
    choice, echoed_choice = toolbox.choose(body.get("tool_choice"))
    if toolbox.chat:
        chat["tools"] = toolbox.chat
        if choice is not None:
            chat["tool_choice"] = choice
    context = ResponseContext(
        body,
        tools=toolbox.echo,
        tool_choice=echoed_choice,
        names=toolbox.names,
        warnings=_once(toolbox.warnings + talk.warnings),
        dropped=_once(toolbox.dropped),
        seal=seal,
        clock=clock,
    )
    return chat, context


def _refuse_state(body: Dict[str, Any]) -> None:
    for field, instead in _STATEFUL.items():
        if body.get(field):
            raise BadRequestError(
                "%s needs a store of earlier responses, which this server does not keep: %s" % (field, instead),
                param=field,
            )


def _input(body: Dict[str, Any]) -> List[Any]:
    given = body.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if isinstance(given, list):
        return given
    if given is None:
        raise BadRequestError("input is required for responses", param="input")
    raise BadRequestError("input must be a string or a list of items", param="input")


def _object(value: Any, param: str) -> Dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise BadRequestError("%s must be an object" % param, param=param)


def _reasoning(reasoning: Any, chat: Dict[str, Any]) -> None:
    if reasoning is None:
        return
    rest = dict(_object(reasoning, "reasoning"))
    # summary asks for a digest that vLLM cannot write; the reasoning itself is given as one.
    rest.pop("summary", None)
    rest.pop("generate_summary", None)
    effort, budget = rest.pop("effort", None), rest.pop("max_tokens", None)
    if effort is not None:
        chat["reasoning_effort"] = effort
    if budget is not None:
        chat["thinking_token_budget"] = budget
    if rest:
        chat["reasoning"] = rest


def _text(text: Any, chat: Dict[str, Any]) -> None:
    if text is None:
        return
    rest = dict(_object(text, "text"))
    form, verbosity = rest.pop("format", None), rest.pop("verbosity", None)
    if form is not None:
        response_format = _response_format(_object(form, "text.format"))
        if response_format is not None:
            chat["response_format"] = response_format
    if verbosity is not None:
        chat["verbosity"] = verbosity
    if rest:
        chat["text"] = rest


def _response_format(form: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    if form.get("type") == "text":
        return None
    if form.get("type") != "json_schema" or isinstance(form.get("json_schema"), dict):
        return form  # json_object, and forms of vLLM's own
    inner = {key: value for key, value in form.items() if key != "type" and value is not None}
    return {"type": "json_schema", "json_schema": inner}


def _logprobs(body: Dict[str, Any], chat: Dict[str, Any]) -> None:
    include = body.get("include") or []
    wanted = isinstance(include, list) and _LOGPROBS in include
    if wanted or body.get("top_logprobs"):
        # vLLM 0.32.0 refuses top_logprobs without it (tests/data/vllm-0.32.0/err_top_logprobs_without_logprobs.json).
        chat.setdefault("logprobs", True)
    elif chat.get("top_logprobs") == 0:
        del chat["top_logprobs"]


def _once(sentences: List[str]) -> List[str]:
    return list(dict.fromkeys(sentences))
