"""Operations of Anthropic's Messages API, which a vLLM server has beside OpenAI's."""

from typing import TYPE_CHECKING

from ..api.replies import Message, MessageEvent, TokenCount
from ..client.stream import Stream
from .calls import Calls
from .described import described

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.parameters import CountTokensRequest, MessagesRequest

__all__ = ["Messages"]

_INPUT = """Input: ``messages`` (objects with ``role`` and ``content``), ``model``, ``system``, ``tools``,
    ``tool_choice``, ``thinking``, ``output_config``, ``chat_template_kwargs``."""
_OUTPUT = """Output: ``max_tokens``, ``stop_sequences``, ``temperature``, ``top_k``, ``top_p``, ``metadata``.

    A server's extensions: ``cache_salt``, ``watermarking``, ``kv_transfer_params``, ``ec_transfer_params``,
    ``vllm_xargs``, ``mm_payload``, ``return_mm_kwargs``."""


class Messages(Calls):
    """Anthropic's Messages."""

    @described(_INPUT, _OUTPUT)
    def messages(self, /, **wire: "Unpack[MessagesRequest]") -> Message:
        """Complete a chat as Anthropic's API has it: POST /v1/messages.

        Tools that Anthropic's own servers carry out, and blocks that vLLM cannot read, are left out with a warning in
        the log.

        >>> reply = vllm.messages(model="echo", messages=[{"role": "user", "content": "Hi"}], max_tokens=9)
        >>> reply.text, reply.stop_reason
        ('You said: Hi', 'end_turn')
        """
        call, body = self._asked("messages", wire)
        return call._record(Message, "messages", body)

    @described(_INPUT, _OUTPUT)
    def messages_stream(self, /, **wire: "Unpack[MessagesRequest]") -> Stream[MessageEvent]:
        """Complete a chat as Anthropic's API has it, event by event.

        >>> ask = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
        >>> with vllm.messages_stream(**ask) as stream:
        ...     print("".join(event.text for event in stream))
        You said: Hi
        """
        from ..api.messages import MessageReader

        call, body = self._asked("messages_stream", wire)
        return call._stream("messages", body, body.get("model"), MessageReader)

    @described(_INPUT)
    def count_tokens(self, /, **wire: "Unpack[CountTokensRequest]") -> TokenCount:
        """Count the tokens of a request before it is made: POST /v1/messages/count_tokens.

        >>> vllm.count_tokens(model="echo", messages=[{"role": "user", "content": "Hello there"}]).input_tokens
        2
        """
        call, body = self._asked("count_tokens", wire)
        return call._record(TokenCount, "count_tokens", body)
