"""Requests of Anthropic's Messages API, with vLLM's fields beside."""

from typing import Any, Iterable, List, Mapping, Optional, TypedDict, Union

from .settings import Extra

__all__ = ["CountTokensRequest", "MessagesRequest"]

Blocks = Union[str, Iterable[Mapping[str, Any]]]


class _Turn(TypedDict):
    role: str
    content: Blocks


class _Turns(TypedDict):
    messages: Iterable[_Turn]


class CountTokensRequest(_Turns, Extra, total=False):
    """POST /v1/messages/count_tokens."""

    model: Optional[str]
    system: Optional[Blocks]
    tools: Optional[Iterable[Mapping[str, Any]]]
    tool_choice: Optional[Mapping[str, Any]]
    thinking: Optional[Mapping[str, Any]]
    output_config: Optional[Mapping[str, Any]]
    chat_template_kwargs: Optional[Mapping[str, Any]]


class _Length(TypedDict):
    max_tokens: int


class MessagesRequest(_Length, CountTokensRequest, total=False):
    """POST /v1/messages."""

    stop_sequences: Optional[List[str]]
    temperature: Optional[float]
    top_k: Optional[int]
    top_p: Optional[float]
    metadata: Optional[Mapping[str, Any]]
    mm_payload: Optional[str]
    return_mm_kwargs: Optional[bool]
    cache_salt: Optional[str]
    watermarking: Optional[bool]
    kv_transfer_params: Optional[Mapping[str, Any]]
    ec_transfer_params: Optional[Mapping[str, Any]]
    vllm_xargs: Optional[Mapping[str, Any]]
