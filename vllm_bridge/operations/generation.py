"""Operations of models that generate text: chat, completions, Responses."""

from typing import TYPE_CHECKING, Any, Dict

from ..api import completions
from ..api.decoding import ChatChunks, CompletionChunks, ResponsesReader
from ..api.records import ChatCompletion, ChatCompletionChunk, Completion, Response, ResponseEvent
from ..client.stream import Stream
from .calls import Calls
from .described import GENERATING, MEDIA, OBSERVED, SAMPLING, SCHEDULING, STOPPING, STRUCTURED, TEMPLATED
from .described import TRANSFER, described

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.parameters import ChatBatchRequest, ChatCompletionRequest, CompletionRequest, ResponsesRequest

__all__ = ["Generation"]

_CHAT = """Chat: ``messages`` (objects with ``role`` and ``content``), ``model``, ``tools``, ``tool_choice``,
    ``parallel_tool_calls``, ``reasoning_effort``, ``include_reasoning``, ``max_completion_tokens``, ``logprobs`` (true)
    with ``top_logprobs`` (a number), ``return_prompt_text``."""
_BATCH = """Chats: ``messages`` (lists of messages), ``model``, ``tool_choice``, ``include_reasoning``,
    ``max_completion_tokens``, ``logprobs`` (true) with ``top_logprobs`` (a number)."""
_CHAT_ONLY_OPENAI = """Nor upon: ``audio``, ``function_call``, ``functions``, ``modalities``, ``prediction``,
    ``verbosity``, ``web_search_options``."""
_TEXT = """Text: ``prompt`` (a string, strings, token ids, lists of them), ``prompt_embeds`` (base64), ``model``,
    ``suffix``, ``logprobs`` (how many), ``best_of``."""
_RESPONSES = """Input: ``input`` (a string, or items), ``model``, ``instructions``, ``previous_response_id``,
    ``previous_input_messages``, ``conversation``, ``prompt``, ``image``, ``tools``, ``tool_choice``,
    ``parallel_tool_calls``, ``max_tool_calls``, ``chat_template_kwargs``, ``truncation``, ``context_management``,
    ``access_programs``.

    Output: ``max_output_tokens``, ``reasoning`` (``{"effort": "low"}``), ``include_reasoning``, ``text`` (its format),
    ``include``, ``top_logprobs``, ``stream_options``, ``background``, ``background_options``,
    ``enable_response_messages``."""
_ALL_CHAT = (_CHAT, *GENERATING, TEMPLATED, MEDIA, OBSERVED, _CHAT_ONLY_OPENAI)
_ALL_TEXT = (_TEXT, *GENERATING)
_ALL_RESPONSES = (_RESPONSES, SAMPLING, STOPPING, STRUCTURED, MEDIA, SCHEDULING, TRANSFER, OBSERVED)


class Generation(Calls):
    """Chat, completions and Responses."""

    @described(*_ALL_CHAT)
    def chat_completion(self, /, **wire: "Unpack[ChatCompletionRequest]") -> ChatCompletion:
        """Complete a chat: POST /v1/chat/completions.

        >>> reply = vllm.chat_completion(model="echo", messages=[{"role": "user", "content": "Hi"}], max_tokens=9)
        >>> reply.choices[0].message.content, reply.choices[0].finish_reason
        ('You said: Hi', 'stop')
        """
        call, body = self._asked("chat_completion", wire)
        wanted = _formed(body) if "response_format" in body else None
        reply = call._record(ChatCompletion, "chat_completion", body)
        if wanted is not None:
            reply.is_to_be(wanted)
        return reply

    @described(*_ALL_CHAT)
    def chat_completion_stream(self, /, **wire: "Unpack[ChatCompletionRequest]") -> Stream[ChatCompletionChunk]:
        """Complete a chat chunk by chunk; the last chunk carries ``usage``.

        >>> with vllm.chat_completion_stream(messages=[{"role": "user", "content": "Hi"}]) as stream:
        ...     print("".join(chunk.text for chunk in stream))
        You said: Hi
        """
        call, body = self._asked("chat_completion_stream", wire)
        wanted = _formed(body) if "response_format" in body else None
        stream = call._chunks(body)
        stream.wanted = wanted
        return stream

    def _chunks(self, body: Dict[str, Any]) -> Stream[ChatCompletionChunk]:
        count = completions.expected_choices(body)
        return self._stream("chat_completion", body, body.get("model"), lambda: ChatChunks(count))

    @described(_BATCH, *GENERATING, TEMPLATED, MEDIA, OBSERVED)
    def chat_completion_batch(self, /, **wire: "Unpack[ChatBatchRequest]") -> ChatCompletion:
        """Complete several chats at once, without tools: POST /v1/chat/completions/batch.

        ``choices[i]`` is the answer to ``messages[i]``.

        >>> chats = [[{"role": "user", "content": text}] for text in ("Hi", "Bye")]
        >>> [choice.message.content for choice in vllm.chat_completion_batch(model="echo", messages=chats).choices]
        ['You said: Hi', 'You said: Bye']
        """
        call, body = self._asked("chat_completion_batch", wire)
        return call._record(ChatCompletion, "chat_completion_batch", body)

    @described(*_ALL_TEXT)
    def text_completion(self, /, **wire: "Unpack[CompletionRequest]") -> Completion:
        """Continue a text: POST /v1/completions.

        >>> vllm.text_completion(model="echo", prompt="Once upon a time", max_tokens=2).text
        ' You said:'
        """
        call, body = self._asked("text_completion", wire)
        wanted = _formed(body) if "response_format" in body else None
        reply = call._record(Completion, "text_completion", body)
        if wanted is not None:
            reply.is_to_be(wanted)
        return reply

    @described(*_ALL_TEXT)
    def text_completion_stream(self, /, **wire: "Unpack[CompletionRequest]") -> Stream[Completion]:
        """Continue a text chunk by chunk; the last chunk carries ``usage``.

        >>> "".join(chunk.text for chunk in vllm.text_completion_stream(prompt="Once upon a time"))
        ' You said: Once upon a time'
        """
        call, body = self._asked("text_completion_stream", wire)
        wanted = _formed(body) if "response_format" in body else None
        count = completions.expected_choices(body)
        stream = call._stream("text_completion", body, body.get("model"), lambda: CompletionChunks(count))
        stream.wanted = wanted
        return stream

    @described(*_ALL_RESPONSES)
    def responses(self, /, **wire: "Unpack[ResponsesRequest]") -> Response:
        """Answer ``input`` by the Responses API, over chat completions unless ``native_responses`` is set.

        What has no place in a chat request is named in the log and in the reply's ``metadata``.

        >>> vllm.responses(model="echo", input="Hi").output_text
        'You said: Hi'
        """
        call, body = self._asked("responses", wire)
        return call._response(body)

    def _response(self, body: Dict[str, Any]) -> Response:
        return self._record(Response, "responses", body)

    @described(*_ALL_RESPONSES)
    def responses_stream(self, /, **wire: "Unpack[ResponsesRequest]") -> Stream[ResponseEvent]:
        """Answer ``input`` by the Responses API, event by event.

        An error before the first event is raised; a later one is the stream's ``response.failed``.

        >>> "".join(event.delta for event in vllm.responses_stream(input="Hi") if event.type.endswith("_text.delta"))
        'You said: Hi'
        """
        call, body = self._asked("responses_stream", wire)
        return call._response_events(body)

    def _response_events(self, body: Dict[str, Any]) -> Stream[ResponseEvent]:
        body["stream"] = True
        return self._stream("responses", body, body.get("model"), ResponsesReader)


def _formed(body: Dict[str, Any]) -> Any:
    """Put a request's ``response_format`` as servers take it; return what the answer is to be read as."""
    from ..api.structured import wire_format

    body["response_format"], wanted = wire_format(body["response_format"])
    return wanted
