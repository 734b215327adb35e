"""The annotated shapes of replies that OpenAI's API does not have (vLLM 0.32.0); see `records`."""

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Union

from .attributes import Shape, Whole
from .folding import objects
from .records import Record, Usage

__all__ = [
    "Classification", "ClassificationList", "CohereEmbeddings", "CohereVectors", "Decision", "Detokenized", "Message",
    "MessageBlock", "MessageEvent", "MessageUsage", "Pooled", "PoolingList", "Score", "ScoreList", "TokenCount",
    "TokenizerInfo", "Tokens",
]


# ---------------------------------------------------------------- tokens


class Tokens(Whole):
    """The reply of ``tokenize``."""

    count: int
    max_model_len: int
    tokens: List[int]
    token_strs: Optional[List[str]]


class Detokenized(Whole):
    """The reply of ``detokenize``: ``prompt`` is the text."""

    prompt: str


class TokenizerInfo(Whole):
    """The reply of ``tokenizer_info``: the model's ``tokenizer_config.json``."""

    tokenizer_class: str
    chat_template: Optional[str]

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...  # type: ignore[override]  # tokenizers have fields of their own


class TokenCount(Whole):
    """The reply of ``count_tokens``."""

    input_tokens: int
    context_management: Optional[Record]


# ---------------------------------------------------------------- pooling models


class Score(Shape):
    """How alike a pair is, or how probable a label; ``index`` is the pair's place in the request."""

    index: int
    object: str
    score: float


class ScoreList(Whole):
    """The reply of ``score`` and of ``generative_scoring``, in the order of the request."""

    id: str
    object: str
    created: int
    model: str
    data: List[Score]
    usage: Optional[Usage]
    extra_fields: Optional[Record]


class Classification(Shape):
    """The class of one input: ``probs`` has one number a class, ``label`` names the most probable one."""

    index: int
    label: Optional[str]
    probs: List[float]
    num_classes: int


class ClassificationList(Whole):
    """The reply of ``classify``."""

    id: str
    object: str
    created: int
    model: str
    data: List[Classification]
    usage: Optional[Usage]
    extra_fields: Optional[Record]


class Pooled(Shape):
    """What pooling makes of one input: one vector, one a token, or base64 of little-endian floats."""

    index: int
    object: str
    data: Union[List[Any], str, bytes]
    shape: Optional[List[int]]


class PoolingList(Whole):
    """The reply of ``pooling``."""

    id: str
    object: str
    created: int
    model: str
    data: List[Pooled]
    usage: Optional[Usage]
    extra_fields: Optional[Record]


class CohereVectors(Shape):
    """The vectors of each form that was asked for; ``embeddings["float"]`` is a field, too."""

    binary: Optional[List[List[int]]]
    ubinary: Optional[List[List[int]]]
    base64: Optional[List[str]]


class CohereEmbeddings(Whole):
    """The reply of ``embed``, Cohere's form of an embedding."""

    id: str
    embeddings: CohereVectors
    texts: Optional[List[str]]
    meta: Optional[Record]
    response_type: str
    extra_fields: Optional[Record]


# ---------------------------------------------------------------- decisions


class Decision(Whole):
    """The reply of ``decision``: an answer to each question, by its id.

    A yes-or-no question's answer has its probability in ``noul``, a choice's ``choice``, ``probabilities`` and
    ``confidence``.
    """

    id: str
    object: str
    created: int
    model: str
    answers: Dict[str, Any]
    usage: Optional[Record]
    diagnostics: Optional[Record]
    extra_fields: Optional[Record]


# ---------------------------------------------------------------- Anthropic's Messages


class MessageUsage(Shape):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: Optional[int]
    cache_read_input_tokens: Optional[int]


class MessageBlock(Shape):
    """One block of a message: ``text``, ``thinking`` or ``tool_use``."""

    type: str
    text: Optional[str]
    thinking: Optional[str]
    signature: Optional[str]
    id: Optional[str]
    name: Optional[str]
    input: Optional[Record]


class Message(Whole):
    """The reply of ``messages``."""

    id: str
    type: str
    role: str
    content: List[MessageBlock]
    model: str
    stop_reason: Optional[str]
    stop_sequence: Optional[str]
    usage: Optional[MessageUsage]
    extra_fields: Optional[Record]

    @property
    def text(self) -> str:
        """All text blocks, joined."""
        texts = [block.get("text") for block in objects(self.get("content")) if block.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))


class MessageDelta(Shape):
    type: Optional[str]
    text: Optional[str]
    thinking: Optional[str]
    partial_json: Optional[str]
    signature: Optional[str]
    stop_reason: Optional[str]
    stop_sequence: Optional[str]


class MessageEvent(Shape):
    """One item of ``messages_stream``."""

    type: str
    index: Optional[int]
    message: Optional[Message]
    content_block: Optional[MessageBlock]
    delta: Optional[MessageDelta]
    usage: Optional[MessageUsage]

    @property
    def text(self) -> str:
        """The text that this event adds, or ``""``."""
        delta = self.get("delta")
        text = delta.get("text") if isinstance(delta, dict) else None
        return text if isinstance(text, str) else ""
