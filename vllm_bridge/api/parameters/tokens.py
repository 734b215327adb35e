"""Requests to a server's tokenizer."""

from typing import Any, Iterable, List, Mapping, Optional, TypedDict

from .messages import AnyMessage, Tool
from .settings import CallSettings, Extra

__all__ = ["DetokenizeRequest", "TokenizeRequest", "TokenizerInfoRequest"]


class TokenizeRequest(Extra, total=False):
    """POST /tokenize: of a ``prompt``, or of a chat's ``messages``."""

    model: Optional[str]
    prompt: Optional[str]
    messages: Optional[Iterable[AnyMessage]]
    add_special_tokens: Optional[bool]
    return_token_strs: Optional[bool]
    add_generation_prompt: Optional[bool]
    continue_final_message: Optional[bool]
    chat_template: Optional[str]
    chat_template_kwargs: Optional[Mapping[str, Any]]
    media_io_kwargs: Optional[Mapping[str, Mapping[str, Any]]]
    mm_processor_kwargs: Optional[Mapping[str, Any]]
    tools: Optional[Iterable[Tool]]


class _Tokens(TypedDict):
    tokens: List[int]


class DetokenizeRequest(_Tokens, Extra, total=False):
    """POST /detokenize."""

    model: Optional[str]


class TokenizerInfoRequest(CallSettings, total=False):
    """GET /tokenizer_info."""

    model: Optional[str]
