"""The settings of a call that are written among its fields, and what several requests share."""

from typing import Any, Dict, Mapping, Optional, Tuple, TypedDict, Union

__all__ = ["CallSettings", "Observed", "Extra", "Pooled", "Scheduling", "Transfer"]


class CallSettings(TypedDict, total=False):
    """They mean what they mean in the openai package, and are no part of the body."""

    timeout: Union[float, Tuple[Optional[float], Optional[float]], None]
    extra_headers: Optional[Mapping[str, str]]
    extra_query: Optional[Mapping[str, object]]


class Extra(CallSettings, total=False):
    """What is merged into the body."""

    extra_body: Optional[Mapping[str, Any]]
    extra_params: Optional[Mapping[str, Any]]


class Scheduling(TypedDict, total=False):
    """Whose request it is, and when its turn comes."""

    priority: Optional[int]
    request_id: Optional[str]
    user: Optional[str]
    cache_salt: Optional[str]


class Transfer(TypedDict, total=False):
    """For a server's extensions."""

    kv_transfer_params: Optional[Mapping[str, Any]]
    ec_transfer_params: Optional[Mapping[str, Any]]
    vllm_xargs: Optional[Mapping[str, Any]]
    session_id: Optional[str]
    mm_payload: Optional[str]
    return_mm_kwargs: Optional[bool]
    watermarking: Optional[bool]


class Observed(TypedDict, total=False):
    """Names of OpenAI's that a vLLM server does not act upon; a gateway may."""

    metadata: Optional[Mapping[str, str]]
    moderation: Optional[Mapping[str, Any]]
    prompt_cache_key: Optional[str]
    prompt_cache_options: Optional[Mapping[str, Any]]
    prompt_cache_retention: Optional[str]
    safety_identifier: Optional[str]
    service_tier: Optional[str]
    store: Optional[bool]


class Pooled(Scheduling, Extra, total=False):
    """What requests to pooling models share."""

    model: Optional[str]
    padding: Optional[str]
    truncate_prompt_tokens: Optional[int]
    truncation_side: Optional[str]
    use_activation: Optional[bool]
    mm_processor_kwargs: Optional[Mapping[str, Any]]
    chat_template_kwargs: Optional[Dict[str, Any]]
