"""Requests that generate text: chat and text completions, and Responses."""

from typing import Any, Dict, Iterable, List, Literal, Mapping, Optional, TypedDict, Union

from .messages import AnyMessage, Tool, ToolChoice
from .settings import Extra, Observed, Scheduling, Transfer

__all__ = ["ChatBatchRequest", "ChatCompletionRequest", "CompletionRequest", "ResponsesRequest"]


class Sampling(TypedDict, total=False):
    """How tokens are chosen."""

    temperature: Optional[float]
    top_p: Optional[float]
    top_k: Optional[int]
    min_p: Optional[float]
    seed: Optional[int]
    presence_penalty: Optional[float]
    frequency_penalty: Optional[float]
    repetition_penalty: Optional[float]
    logit_bias: Optional[Mapping[str, float]]


class Stopping(TypedDict, total=False):
    """Where the answer ends."""

    stop: Union[str, List[str], None]
    stop_token_ids: Optional[List[int]]
    include_stop_str_in_output: Optional[bool]
    ignore_eos: Optional[bool]
    skip_special_tokens: Optional[bool]


class Structured(TypedDict, total=False):
    """What form the answer has."""

    structured_outputs: Optional[Mapping[str, Any]]


class Media(TypedDict, total=False):
    """How images, audio and video are read."""

    media_io_kwargs: Optional[Mapping[str, Mapping[str, Any]]]
    mm_processor_kwargs: Optional[Mapping[str, Any]]


class Completing(Sampling, Stopping, Structured, Scheduling, Transfer, Extra, total=False):
    """What chat and text completions share."""

    model: Optional[str]
    n: Optional[int]
    max_tokens: Optional[int]
    min_tokens: Optional[int]
    thinking_token_budget: Optional[int]
    response_format: Union[Mapping[str, Any], type, None]
    echo: Optional[bool]
    add_special_tokens: Optional[bool]
    spaces_between_special_tokens: Optional[bool]
    allowed_token_ids: Optional[List[int]]
    bad_words: Optional[List[str]]
    use_beam_search: Optional[bool]
    length_penalty: Optional[float]
    repetition_detection: Optional[Mapping[str, Any]]
    truncate_prompt_tokens: Optional[int]
    truncation_side: Optional[Literal["left", "right"]]
    prompt_logprobs: Optional[int]
    logprob_token_ids: Optional[List[int]]
    return_tokens_as_token_ids: Optional[bool]
    return_token_ids: Optional[bool]
    return_token_offsets: Optional[bool]
    routed_experts_prompt_start: Optional[int]
    stream_options: Optional[Mapping[str, Any]]
    stream_interval: Optional[int]


class _Messages(TypedDict):
    messages: Iterable[AnyMessage]


class Templated(Media, total=False):
    """How a chat becomes a prompt."""

    documents: Optional[Iterable[Mapping[str, str]]]
    chat_template: Optional[str]
    chat_template_kwargs: Optional[Mapping[str, Any]]
    add_generation_prompt: Optional[bool]
    continue_final_message: Optional[bool]


class ChatCompletionRequest(_Messages, Completing, Templated, Observed, total=False):
    """POST /v1/chat/completions."""

    tools: Optional[Iterable[Tool]]
    tool_choice: Optional[ToolChoice]
    parallel_tool_calls: Optional[bool]
    max_completion_tokens: Optional[int]
    reasoning_effort: Optional[Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]]
    include_reasoning: Optional[bool]
    logprobs: Optional[bool]
    top_logprobs: Optional[int]
    return_prompt_text: Optional[bool]
    audio: Optional[Mapping[str, Any]]
    function_call: Union[str, Mapping[str, Any], None]
    functions: Optional[Iterable[Mapping[str, Any]]]
    modalities: Optional[List[str]]
    prediction: Optional[Mapping[str, Any]]
    verbosity: Optional[str]
    web_search_options: Optional[Mapping[str, Any]]


class _Conversations(TypedDict):
    messages: Iterable[Iterable[AnyMessage]]


class ChatBatchRequest(_Conversations, Completing, Templated, Observed, total=False):
    """POST /v1/chat/completions/batch."""

    tool_choice: Optional[ToolChoice]
    max_completion_tokens: Optional[int]
    include_reasoning: Optional[bool]
    logprobs: Optional[bool]
    top_logprobs: Optional[int]


class CompletionRequest(Completing, total=False):
    """POST /v1/completions."""

    prompt: Union[str, List[str], List[int], List[List[int]], None]
    prompt_embeds: Union[str, List[str], None]
    suffix: Optional[str]
    logprobs: Optional[int]
    best_of: Optional[int]


class _Input(TypedDict):
    input: Union[str, Iterable[Mapping[str, Any]]]


class ResponsesRequest(
    _Input, Sampling, Stopping, Structured, Media, Scheduling, Transfer, Observed, Extra, total=False
):
    """POST /v1/responses."""

    model: Optional[str]
    instructions: Optional[str]
    previous_response_id: Optional[str]
    previous_input_messages: Optional[List[Any]]
    conversation: Union[str, Mapping[str, Any], None]
    prompt: Optional[Mapping[str, Any]]
    tools: Optional[Iterable[Mapping[str, Any]]]
    tool_choice: Union[str, Mapping[str, Any], None]
    parallel_tool_calls: Optional[bool]
    max_tool_calls: Optional[int]
    max_output_tokens: Optional[int]
    reasoning: Optional[Mapping[str, Any]]
    include_reasoning: Optional[bool]
    text: Optional[Mapping[str, Any]]
    include: Optional[List[str]]
    top_logprobs: Optional[int]
    truncation: Optional[Literal["auto", "disabled"]]
    background: Optional[bool]
    background_options: Optional[Mapping[str, Any]]
    context_management: Optional[List[Mapping[str, Any]]]
    stream_options: Optional[Mapping[str, Any]]
    chat_template_kwargs: Optional[Dict[str, Any]]
    enable_response_messages: Optional[bool]
    access_programs: Optional[List[Any]]
    image: Any
