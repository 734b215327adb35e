"""What OpenAI and vLLM 0.32 document as fields of each request: one TypedDict an operation, and what they are made of.

For type checkers, ``help()`` and warnings of a misspelt name: no call needs them. ``None`` means omit. What a server
takes beside them goes through all the same, for type checkers in ``extra_body``.
"""

from .anthropic import CountTokensRequest, MessagesRequest
from .audio import TranscriptionRequest, TranslationRequest
from .generation import ChatBatchRequest, ChatCompletionRequest, CompletionRequest, ResponsesRequest
from .messages import ContentPart, Function, FunctionCall, Message, Tool, ToolCall, ToolChoice
from .pooling import (
    ClassifyRequest,
    DecisionRequest,
    EmbeddingRequest,
    EmbedRequest,
    GenerativeScoringRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from .settings import CallSettings, Extra
from .tokens import DetokenizeRequest, TokenizeRequest, TokenizerInfoRequest

__all__ = [
    "CallSettings",
    "ChatBatchRequest",
    "ChatCompletionRequest",
    "ClassifyRequest",
    "CompletionRequest",
    "ContentPart",
    "CountTokensRequest",
    "DecisionRequest",
    "DetokenizeRequest",
    "EmbedRequest",
    "EmbeddingRequest",
    "Extra",
    "Function",
    "FunctionCall",
    "GenerativeScoringRequest",
    "Message",
    "MessagesRequest",
    "PoolingRequest",
    "RerankRequest",
    "ResponsesRequest",
    "ScoreRequest",
    "TokenizeRequest",
    "TokenizerInfoRequest",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "TranscriptionRequest",
    "TranslationRequest",
]
