"""POST /v1/completions: the replies and the chunks of vLLM 0.32.0, key for key."""

from typing import Any, Dict, List, Optional

from .directives import Plan
from .generate import (FINGERPRINT, Generation, answer, candidates, generate, ids, in_turn, last_usage, length_check,
                       logprob, pieces, prompt_logprobs, running_usage, sampling_checks, texts_of, usage, whole)
from .refusal import bad_request, plain_bad_request
from .reply import Reply, World, headed

_DEFAULT_MAX_TOKENS = 16


def heard(body: Dict[str, Any]) -> str:
    """Return the text that the directives are read from: the first prompt."""
    return (texts_of(body.get("prompt")) or [""])[0]


def complete(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer a completion. Raises Refusal for what vLLM refuses."""
    texts = texts_of(body.get("prompt"))
    if not texts:
        raise plain_bad_request("You must pass at least one prompt")
    if not texts[0]:
        raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if body.get("suffix"):
        raise plain_bad_request("suffix is only supported for models with FIM completion rendering", "suffix")
    sampling_checks(body, world.max_model_len)
    texts[0] = plan.text or texts[0]
    prompt_tokens = sum(len(pieces(text)) for text in texts)
    length_check(prompt_tokens, world.max_model_len)
    budget = whole(body, "max_tokens", _DEFAULT_MAX_TOKENS)
    number = whole(body, "n", 1) or 1
    choices = [_Choice(body, text, _generation(body, plan, text, index, budget))
               for text in texts for index in range(number)]
    counted = usage(prompt_tokens, sum(choice.generation.count for choice in choices))
    if body.get("stream"):
        return Reply(events=_chunks(body, identity, choices, counted), tokens=counted["completion_tokens"])
    return Reply(headed(identity, "text_completion", choices=[
        choice.whole(index) for index, choice in enumerate(choices)
    ], service_tier=None, system_fingerprint=FINGERPRINT, usage=counted, kv_transfer_params=None,
        ec_transfer_params=None, metrics=None), tokens=counted["completion_tokens"])


def _generation(body: Dict[str, Any], plan: Plan, text: str, index: int, budget: Optional[int]) -> Generation:
    said = answer(body, plan, " You said: " + text)
    return generate(body, plan, said if index == 0 else "%s (%d)" % (said, index + 1), [], False, budget)


class _Choice:
    """One choice of a completion: the prompt it answers and its generation."""

    def __init__(self, body: Dict[str, Any], prompt: str, generation: Generation) -> None:
        self.generation = generation
        self._prompt = prompt if body.get("echo") else ""
        self._top = whole(body, "logprobs")
        self._with_ids = bool(body.get("return_token_ids"))
        # Asked for, or a by-product of logprobs with echo (completions_echo_logprobs).
        asked = whole(body, "prompt_logprobs", self._top if self._prompt else None)
        self._prompt_logprobs = prompt_logprobs(prompt, asked)
        self._prompt_ids = ids(pieces(prompt)) if self._with_ids else None

    def whole(self, index: int) -> Dict[str, Any]:
        """Return the choice of an answer in one piece."""
        texts = [token.text for token in self.generation.tokens]
        return {"index": index, "text": self._prompt + "".join(texts), "logprobs": self._logprobs(texts, 0, True),
                "finish_reason": self.generation.finish_reason, "stop_reason": self.generation.stop_reason,
                "token_ids": ids(texts) if self._with_ids else None, "prompt_logprobs": self._prompt_logprobs,
                "prompt_token_ids": self._prompt_ids, "routed_experts": None}

    def parts(self, index: int) -> List[Dict[str, Any]]:
        """Return the choices of the stream's chunks; after a stop the last one has no text (completions_stream)."""
        generation = self.generation
        texts = [token.text for token in generation.tokens]
        if not texts or (generation.finish_reason == "stop" and generation.stop_reason is None):
            texts.append("")
        parts = []
        offset = 0
        for number, text in enumerate(texts):
            last = number == len(texts) - 1
            shown = (self._prompt if number == 0 else "") + text
            parts.append({"index": index, "text": shown,
                          "logprobs": self._logprobs([text] if text else [], offset, number == 0),
                          "finish_reason": generation.finish_reason if last else None,
                          "stop_reason": generation.stop_reason if last else None,
                          "prompt_token_ids": self._prompt_ids if number == 0 else None,
                          "token_ids": ids([text] if text else []) if self._with_ids else None})
            offset += len(shown)
        return parts

    def _logprobs(self, texts: List[str], offset: int, first: bool) -> Optional[Dict[str, Any]]:
        if self._top is None:
            return None
        echoed = pieces(self._prompt) if first else []
        found: Dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for number, text in enumerate(echoed + texts):
            known = not (echoed and number == 0)  # nothing comes before the first token of a prompt
            found["text_offset"].append(offset)
            found["token_logprobs"].append(logprob(text) if known else None)
            found["tokens"].append(text)
            # A prompt's token is seldom the likeliest, so it comes besides those (completions_echo_logprobs).
            top = max(1, self._top) + (number < len(echoed))
            found["top_logprobs"].append(dict(candidates(text, top)) if known else None)
            offset += len(text)
        return found


def _chunks(body: Dict[str, Any], identity: Dict[str, Any], choices: List[_Choice],
            counted: Dict[str, Any]) -> List[Dict[str, Any]]:
    options = body.get("stream_options") or {}
    with_usage = options.get("include_usage")
    chunks = []
    sent = 0
    for part in in_turn([choice.parts(index) for index, choice in enumerate(choices)]):
        sent += bool(part["text"])
        chunks.append(headed(identity, "text_completion", choices=[part]))
        if with_usage and options.get("continuous_usage_stats"):
            chunks[-1]["usage"] = running_usage(counted["prompt_tokens"], sent)
    if with_usage:
        chunks.append(headed(identity, "text_completion", choices=[], usage=last_usage(counted)))
    chunks[-1]["system_fingerprint"] = FINGERPRINT
    return chunks
