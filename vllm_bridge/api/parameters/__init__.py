"""What OpenAI and vLLM 0.32 document as fields of each request: one TypedDict an operation, and what they are made of.

For type checkers, ``help()`` and warnings of a misspelt name: no call needs them. ``None`` means omit. What a server
takes beside them goes through all the same, for type checkers in ``extra_body``.
"""

from .audio import TranscriptionRequest
from .generation import ChatCompletionRequest, CompletionRequest, ResponsesRequest
from .messages import ContentPart, Function, FunctionCall, Message, Tool, ToolCall, ToolChoice
from .pooling import EmbeddingRequest, RerankRequest
from .settings import CallSettings, Extra

__all__ = [
    "CallSettings",
    "ChatCompletionRequest",
    "CompletionRequest",
    "ContentPart",
    "EmbeddingRequest",
    "Extra",
    "Function",
    "FunctionCall",
    "Message",
    "RerankRequest",
    "ResponsesRequest",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "TranscriptionRequest",
]
