"""Requests to pooling models: vectors and scores."""

from typing import Any, Iterable, List, Literal, Mapping, Optional, TypedDict, Union

from .messages import AnyMessage
from .settings import Extra, Pooled

__all__ = [
    "ClassifyRequest", "DecisionRequest", "EmbedRequest", "EmbeddingRequest", "GenerativeScoringRequest",
    "PoolingRequest", "RerankRequest", "ScoreRequest",
]


class ClassifyRequest(Pooled, total=False):
    """POST /classify: of ``input``, or of a chat's ``messages``."""

    input: Union[str, List[str], List[int], List[List[int]], None]
    messages: Optional[Iterable[AnyMessage]]
    add_special_tokens: Optional[bool]
    add_generation_prompt: Optional[bool]
    continue_final_message: Optional[bool]
    chat_template: Optional[str]
    media_io_kwargs: Optional[Mapping[str, Mapping[str, Any]]]


class EmbeddingRequest(ClassifyRequest, total=False):
    """POST /v1/embeddings."""

    encoding_format: Optional[Literal["float", "base64", "bytes", "bytes_only"]]
    embed_dtype: Optional[Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]]
    endianness: Optional[Literal["native", "big", "little"]]
    dimensions: Optional[int]


class PoolingRequest(EmbeddingRequest, total=False):
    """POST /pooling."""

    task: Optional[str]
    data: Any


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


Text = Union[str, Mapping[str, Any]]


class ScoreRequest(Pooled, total=False):
    """POST /v1/score: pairs under one of four pairs of names."""

    text_1: Union[Text, Iterable[Text], None]
    text_2: Union[Text, Iterable[Text], None]
    queries: Union[Text, Iterable[Text], None]
    documents: Union[Text, Iterable[Text], None]
    items: Union[Text, Iterable[Text], None]
    data_1: Union[Text, Iterable[Text], None]
    data_2: Union[Text, Iterable[Text], None]
    instruction: Optional[str]
    max_tokens_per_query: Optional[int]
    max_tokens_per_doc: Optional[int]


class EmbedRequest(Extra, total=False):
    """POST /v2/embed, Cohere's form of an embedding: one of ``texts``, ``images`` and ``inputs``."""

    model: Optional[str]
    texts: Optional[List[str]]
    images: Optional[List[str]]
    inputs: Optional[Iterable[Mapping[str, Any]]]
    input_type: Optional[str]
    output_dimension: Optional[int]
    embedding_types: Optional[List[Literal["float", "base64", "binary", "ubinary"]]]
    truncate: Optional[Literal["NONE", "START", "END"]]
    max_tokens: Optional[int]
    priority: Optional[int]


class _Asked(TypedDict):
    state: Any
    questions: Mapping[str, Mapping[str, Any]]


class DecisionRequest(_Asked, Extra, total=False):
    """POST /v1/systemone."""

    model: Optional[str]
    instructions: Optional[str]
    images: Optional[List[str]]
    audio: Optional[List[str]]
    videos: Optional[List[str]]
    chat_template_kwargs: Optional[Mapping[str, Any]]
    cache_salt: Optional[str]
    priority: Optional[int]
    request_id: Optional[str]


class _Labelled(TypedDict):
    query: Union[str, List[int]]
    items: Union[List[str], List[List[int]]]
    label_token_ids: List[int]


class GenerativeScoringRequest(_Labelled, Extra, total=False):
    """POST /generative_scoring."""

    model: Optional[str]
    apply_softmax: Optional[bool]
    item_first: Optional[bool]
    add_special_tokens: Optional[bool]
    cache_salt: Optional[str]
    priority: Optional[int]
    request_id: Optional[str]
