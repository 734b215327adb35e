"""Requests that carry speech."""

import os
from typing import IO, TYPE_CHECKING, Any, List, Literal, Mapping, Optional, Tuple, TypedDict, Union

from .settings import Extra

__all__ = ["Spoken", "TranscriptionRequest", "TranslationRequest"]

if TYPE_CHECKING:
    PathLike = os.PathLike[str]
else:
    PathLike = os.PathLike  # takes no arguments on Python 3.8

Content = Union[str, PathLike, bytes, bytearray, IO[bytes]]


class _File(TypedDict):
    file: Union[Content, Tuple[Optional[str], Content], Tuple[Optional[str], Content, Optional[str]]]


class Spoken(_File, Extra, total=False):
    """What transcription and translation share."""

    model: Optional[str]
    language: Optional[str]
    to_language: Optional[str]
    prompt: Optional[str]
    hotwords: Optional[str]
    temperature: Optional[float]
    top_p: Optional[float]
    top_k: Optional[int]
    min_p: Optional[float]
    seed: Optional[int]
    frequency_penalty: Optional[float]
    presence_penalty: Optional[float]
    repetition_penalty: Optional[float]
    max_completion_tokens: Optional[int]
    n: Optional[int]
    use_beam_search: Optional[bool]
    length_penalty: Optional[float]
    include_stop_str_in_output: Optional[bool]
    watermarking: Optional[bool]
    stream_include_usage: Optional[bool]
    stream_continuous_usage_stats: Optional[bool]
    vllm_xargs: Optional[Mapping[str, Any]]


class TranslationRequest(Spoken, total=False):
    """POST /v1/audio/translations."""

    response_format: Optional[Literal["json", "text", "srt", "verbose_json", "vtt"]]


class TranscriptionRequest(Spoken, total=False):
    """POST /v1/audio/transcriptions."""

    response_format: Optional[Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"]]
    timestamp_granularities: Optional[List[Literal["word", "segment"]]]
    chunking_strategy: Union[str, Mapping[str, Any], None]
    include: Optional[List[str]]
    keywords: Optional[List[str]]
    known_speaker_names: Optional[List[str]]
    known_speaker_references: Optional[List[str]]
    languages: Optional[List[str]]
