"""Requests to pooling models: vectors and scores."""

from typing import Any, Iterable, List, Literal, Mapping, Optional, TypedDict, Union

from .messages import AnyMessage
from .settings import Pooled

__all__ = ["EmbeddingRequest", "RerankRequest"]


class EmbeddingRequest(Pooled, total=False):
    """POST /v1/embeddings: of ``input``, or of a chat's ``messages``."""

    input: Union[str, List[str], List[int], List[List[int]], None]
    messages: Optional[Iterable[AnyMessage]]
    encoding_format: Optional[Literal["float", "base64", "bytes", "bytes_only"]]
    embed_dtype: Optional[Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]]
    endianness: Optional[Literal["native", "big", "little"]]
    dimensions: Optional[int]
    add_special_tokens: Optional[bool]
    add_generation_prompt: Optional[bool]
    continue_final_message: Optional[bool]
    chat_template: Optional[str]
    media_io_kwargs: Optional[Mapping[str, Mapping[str, Any]]]


class _Ranked(TypedDict):
    query: Union[str, Mapping[str, Any]]
    documents: Union[str, Iterable[Union[str, Mapping[str, Any]]]]


class RerankRequest(_Ranked, Pooled, total=False):
    """POST /v1/rerank."""

    top_n: Optional[int]
    return_documents: Optional[bool]
    instruction: Optional[str]
    max_tokens_per_query: Optional[int]
    max_tokens_per_doc: Optional[int]
