"""Operations of a server's tokenizer."""

from typing import TYPE_CHECKING

from ..api.body import object_of
from ..api.replies import Detokenized, TokenizerInfo, Tokens
from ..errors import APIStatusError
from .calls import PATHS, Calls
from .described import described

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.parameters import DetokenizeRequest, TokenizeRequest, TokenizerInfoRequest

__all__ = ["Tokenizing"]

_TOKENIZE = """Input: ``prompt`` (a string) or ``messages``, ``model``; ``add_special_tokens``, ``return_token_strs``.

    Of messages: ``tools``, ``chat_template``, ``chat_template_kwargs``, ``add_generation_prompt``,
    ``continue_final_message``, ``media_io_kwargs``, ``mm_processor_kwargs``."""


class Tokenizing(Calls):
    """Texts as tokens, and back."""

    @described(_TOKENIZE)
    def tokenize(self, /, **wire: "Unpack[TokenizeRequest]") -> Tokens:
        """Turn a text, or a chat as the model sees it, into token ids: POST /tokenize.

        >>> vllm.tokenize(model="echo", prompt="Hello there").count
        2
        """
        call, body = self._asked("tokenize", wire)
        return call._record(Tokens, "tokenize", body)

    @described("Input: ``tokens`` (ids), ``model``.")
    def detokenize(self, /, **wire: "Unpack[DetokenizeRequest]") -> Detokenized:
        """Turn token ids into text: POST /detokenize.

        >>> tokens = vllm.tokenize(model="echo", prompt="Hello there").tokens
        >>> vllm.detokenize(model="echo", tokens=tokens).prompt
        'Hello there'
        """
        call, body = self._asked("detokenize", wire)
        return call._record(Detokenized, "detokenize", body)

    @described("``model``: whose, where servers have several; it is not sent.")
    def tokenizer_info(self, /, **wire: "Unpack[TokenizerInfoRequest]") -> TokenizerInfo:
        """Return a model's ``tokenizer_config.json``: GET /tokenizer_info.

        A vLLM server has it with ``--enable-tokenizer-info-endpoint``.

        >>> vllm.tokenizer_info(model="echo").tokenizer_class
        'EchoTokenizer'
        """
        call, body = self._asked("tokenizer_info", wire)
        try:
            reply = call._caller.reply("GET", PATHS["tokenizer_info"], None, body.get("model"), call._options)
        except APIStatusError as error:
            raise call._explained("tokenizer_info", error) from None
        return TokenizerInfo(reply.read(lambda: object_of(reply.body)))
