"""Messages, their parts, and tools, as OpenAI's chat API has them and vLLM takes them."""

from typing import Any, Iterable, Literal, Mapping, Optional, TypedDict, Union

from ..records import Record

__all__ = ["AnyMessage", "ContentPart", "Function", "FunctionCall", "Message", "Tool", "ToolCall", "ToolChoice"]


class ImageURL(TypedDict, total=False):
    """``url`` is http(s), or ``data:image/png;base64,...``."""

    url: str
    detail: Optional[str]


class MediaURL(TypedDict):
    url: str


class InputAudio(TypedDict):
    """``data`` is base64, ``format`` ``"wav"`` or ``"mp3"``."""

    data: str
    format: str


class _Typed(TypedDict):
    type: str


class ContentPart(_Typed, total=False):
    """One part of a message: the member that its ``type`` names.

    vLLM 0.32 takes ``text``, ``image_url``, ``audio_url``, ``video_url``, ``input_audio``, ``image_embeds`` and more.
    """

    text: Optional[str]
    image_url: Union[ImageURL, str, None]
    audio_url: Union[MediaURL, str, None]
    video_url: Union[MediaURL, str, None]
    input_audio: Optional[InputAudio]
    image_embeds: Any
    audio_embeds: Any
    image_pil: Any
    refusal: Optional[str]
    file: Optional[Mapping[str, Any]]
    uuid: Optional[str]


class FunctionCall(TypedDict):
    """``arguments`` is a string of JSON."""

    name: str
    arguments: str


class _ToolCallId(TypedDict):
    id: str


class ToolCall(_ToolCallId, total=False):
    """A call that the model asked for, as it goes back in the assistant's message."""

    type: str
    function: FunctionCall
    custom: Mapping[str, Any]


class _Role(TypedDict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]


class Message(_Role, total=False):
    """One message of a chat; a tool's has ``tool_call_id``, an assistant's may have ``tool_calls``, ``reasoning``."""

    content: Union[str, Iterable[ContentPart], None]
    name: Optional[str]
    tool_calls: Optional[Iterable[Union[ToolCall, Record]]]
    tool_call_id: Optional[str]
    reasoning: Optional[str]
    reasoning_content: Optional[str]
    refusal: Optional[str]
    audio: Optional[Mapping[str, Any]]
    function_call: Optional[FunctionCall]
    tools: Optional[Iterable["Tool"]]


AnyMessage = Union[Message, Record]  # a record: the message of a reply


class _FunctionName(TypedDict):
    name: str


class Function(_FunctionName, total=False):
    """``parameters`` is a JSON schema."""

    description: Optional[str]
    parameters: Optional[Mapping[str, Any]]
    strict: Optional[bool]


class _ToolType(TypedDict):
    type: Literal["function"]


class Tool(_ToolType, total=False):
    """A function that the model may ask for."""

    function: Function
    defer_loading: Optional[bool]


class NamedTool(TypedDict):
    """The one tool that has to be asked for."""

    type: Literal["function"]
    function: _FunctionName


ToolChoice = Union[Literal["none", "auto", "required"], NamedTool]
