"""What ``help()`` and completion show of an operation: parameters by group, and a signature made when it is asked for.

A call takes ``**wire``: seventy real keyword parameters would cost ten times as much.
"""

from types import FunctionType
from typing import Any, Callable, Mapping, Tuple, TypeVar, cast

__all__ = ["described", "fields_of"]

F = TypeVar("F", bound=Callable[..., Any])

SAMPLING = """Sampling: ``temperature`` (0 takes the likeliest token), ``top_p``, ``top_k``, ``min_p``, ``seed``,
    ``presence_penalty``, ``frequency_penalty``, ``repetition_penalty``, ``logit_bias`` (by token id)."""
STOPPING = """Where it ends: ``stop`` (strings), ``stop_token_ids``, ``include_stop_str_in_output``, ``ignore_eos``,
    ``skip_special_tokens``."""
STRUCTURED = """Its form: ``structured_outputs`` (one of ``json``, ``regex``, ``choice``, ``grammar``)."""
COMPLETING = """Its length and number: ``max_tokens``, ``min_tokens``, ``thinking_token_budget`` (all in tokens), ``n``.
    ``response_format``: a JSON schema, a dataclass, a TypedDict or a pydantic model, which ``reply.parsed`` then is; or
    as servers take it, ``{"type": "json_object"}``, ``{"type": "json_schema", "json_schema": {...}}``.

    Tokens: ``echo``, ``add_special_tokens``, ``spaces_between_special_tokens``, ``allowed_token_ids``, ``bad_words``,
    ``use_beam_search``, ``length_penalty``, ``repetition_detection``, ``truncate_prompt_tokens`` (a number, -1: the
    model's own limit), ``truncation_side``. What comes along: ``prompt_logprobs``, ``logprob_token_ids``,
    ``return_tokens_as_token_ids``, ``return_token_ids``, ``return_token_offsets``, ``routed_experts_prompt_start``;
    of a stream ``stream_options``, ``stream_interval`` (tokens an event)."""
TEMPLATED = """Its prompt: ``documents``, ``chat_template``, ``chat_template_kwargs``
    (``{"enable_thinking": False}``), ``add_generation_prompt``, ``continue_final_message``."""
MEDIA = """Media: ``media_io_kwargs``, ``mm_processor_kwargs``."""
SCHEDULING = """Whose it is, and when: ``priority`` (less comes first), ``request_id``, ``user``, ``cache_salt``."""
TRANSFER = """A server's extensions: ``kv_transfer_params``, ``ec_transfer_params``, ``vllm_xargs``, ``session_id``,
    ``mm_payload``, ``return_mm_kwargs``, ``watermarking``."""
OBSERVED = """OpenAI's, which vLLM does not act upon: ``metadata``, ``moderation``, ``prompt_cache_key``,
    ``prompt_cache_options``, ``prompt_cache_retention``, ``safety_identifier``, ``service_tier``, ``store``."""
POOLED = """Tokens: ``truncate_prompt_tokens`` (a number, -1: the model's own limit), ``truncation_side``, ``padding``;
    ``use_activation``, ``mm_processor_kwargs``, ``chat_template_kwargs``."""
SPOKEN = """Text: ``language`` (ISO 639-1), ``to_language``, ``prompt``, ``hotwords``, ``max_completion_tokens``, ``n``.

    Sampling: ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``seed``, ``frequency_penalty``, ``presence_penalty``,
    ``repetition_penalty``, ``use_beam_search``, ``length_penalty``, ``include_stop_str_in_output``, ``watermarking``.

    Of a stream: ``stream_include_usage``, ``stream_continuous_usage_stats``. A server's extensions: ``vllm_xargs``."""
SETTINGS = """Of the call, not of the body: ``timeout`` (seconds, or (connect, read); ``None`` waits for ever),
    ``extra_headers``, ``extra_query``."""
MERGED = "``extra_body`` and ``extra_params`` are merged into the body."
RAISES = """Raises `APIConnectionError`, `APITimeoutError`, `APIStatusError` and its subclasses, `ResponseDecodeError`;
    `BadRequestError` also for what cannot be sent."""
GENERATING = (SAMPLING, COMPLETING, STOPPING, STRUCTURED, SCHEDULING, TRANSFER)


def described(*groups: str) -> Callable[[F], F]:
    """Complete an operation's docstring by groups of parameters; make its signature of its request's TypedDict.

    That is the one in its annotation, ``**wire: "Unpack[ChatCompletionRequest]"``.
    """

    def describe(operation: F) -> F:
        inner = cast(FunctionType, operation)
        outer = FunctionType(inner.__code__, inner.__globals__, inner.__name__, None, inner.__closure__)
        for name in ("__module__", "__qualname__"):
            setattr(outer, name, getattr(inner, name))
        outer.__annotations__ = {**inner.__annotations__, "wire": Any}
        if inner.__doc__ is not None:  # python -OO
            outer.__doc__ = _with(inner.__doc__, (*groups, MERGED, SETTINGS, RAISES) if groups else (SETTINGS, RAISES))
        outer.__dict__["__wrapped__"] = _Signed(inner)
        return cast(F, outer)

    return describe


def _with(doc: str, groups: Tuple[str, ...]) -> str:
    """Return a docstring with groups of parameters before its example."""
    text, mark, example = doc.partition(">>>")
    text, margin = text.rstrip(" "), text[len(text.rstrip(" ")):]  # Python 3.13 takes the margin away itself
    return text + "".join(
        "%s%s\n\n" % (margin, group.replace("\n    ", "\n" + margin)) for group in groups
    ) + margin + mark + example


class _Signed:
    """What `inspect` finds behind an operation: its signature, made when it is asked for, and its source."""

    def __init__(self, operation: FunctionType) -> None:
        self.__wrapped__ = operation

    @property
    def shape(self) -> Any:
        """Return the TypedDict that the operation's annotation names."""
        from ..api import parameters

        return getattr(parameters, self.__wrapped__.__annotations__["wire"][len("Unpack["):-1])

    @property
    def __signature__(self) -> Any:
        from inspect import Parameter, Signature

        from ..api import parameters

        required = getattr(self.shape, "__required_keys__", ())  # not on Python 3.8
        last = parameters.Extra.__annotations__
        named = [
            Parameter(
                name, Parameter.KEYWORD_ONLY, annotation=hint,
                default=Parameter.empty if name in required else _INHERITED if name == "timeout" else None,
            ) for name, hint in sorted(
                self.shape.__annotations__.items(),
                key=lambda item: (item[0] not in required, item[0] != "model", item[0] in last),
            )
        ]
        return Signature([
            Parameter("self", Parameter.POSITIONAL_ONLY), *named,
            Parameter("wire", Parameter.VAR_KEYWORD, annotation=Any),
        ], return_annotation=self.__wrapped__.__annotations__["return"])


class _Inherited:
    def __repr__(self) -> str:
        return "the provider's"


_INHERITED = _Inherited()


def fields_of(operation: Any) -> Mapping[str, Any]:
    """Return the fields that an operation is documented to take, its settings among them."""
    fields: Mapping[str, Any] = operation.__wrapped__.shape.__annotations__
    return fields
