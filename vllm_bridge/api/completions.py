"""Text completions: what a request asks for, and chunks folded into a completion."""

from typing import Any, Dict, List

from .chat import rename_guided
from .folding import check_finish, copied, fold, index_of, joined, latest, objects, without_empty_ends

__all__ = ["CompletionAccumulator", "expected_choices", "normalise", "prepare"]


def prepare(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return the completion request that goes on the wire: ``guided_*`` renamed, all else as it is."""
    return rename_guided(body)


def normalise(payload: Dict[str, Any]) -> Dict[str, Any]:
    """Return the completion, or raise `InternalServerError` if the server aborted the generation."""
    for choice in objects(payload.get("choices")):
        check_finish(choice, payload)
        without_empty_ends(choice)
    return payload


def expected_choices(body: Dict[str, Any]) -> int:
    """Return how many choices a request asks for: ``n`` for each prompt.

    Rather too many than too few: a stream with choices to come is not ended by a pause. vLLM takes ``"2"`` for 2.
    """
    count = body.get("n")
    if isinstance(count, str) and len(count) < 5 and count.isdecimal():
        count = int(count)
    choices = int(count) if isinstance(count, (int, float)) and 1 <= count < 1e6 else 1
    return choices * max(1, _prompts(body.get("prompt")) + _prompts(body.get("prompt_embeds")))


def _prompts(prompt: Any) -> int:
    if not isinstance(prompt, (list, tuple)):
        return 0 if prompt is None else 1
    return 1 if prompt and isinstance(prompt[0], int) else len(prompt)


class CompletionAccumulator:
    """Fold the chunks of a text stream into the completion that the same request gives without streaming."""

    def __init__(self) -> None:
        self._top: Dict[str, Any] = {}
        self._choices: Dict[int, Dict[str, Any]] = {}
        self._texts: Dict[int, List[str]] = {}

    def feed(self, chunk: Dict[str, Any]) -> None:
        """Add one chunk."""
        for key, value in chunk.items():
            if key != "choices":
                latest(self._top, key, value)
        for choice in objects(chunk.get("choices")):
            index = index_of(choice)
            folded = self._choices.setdefault(index, {"finish_reason": None})
            texts = self._texts.setdefault(index, [])
            for key, value in choice.items():
                if key == "text":
                    if isinstance(value, str):
                        texts.append(value)
                elif key != "index":
                    fold(folded, key, value)

    def completion(self) -> Dict[str, Any]:
        """Return what has arrived so far as a completion."""
        choices = [
            {"index": index, "text": joined(self._texts[index]), **copied(self._choices[index])}
            for index in sorted(self._choices)
        ]
        return {**self._top, "choices": choices}
