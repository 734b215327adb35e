"""Text completions: what a request asks for, and chunks folded into a completion."""

from typing import Any, Dict

from .chat import check_finish, fold, latest, objects, rename_guided

__all__ = ["CompletionAccumulator", "expected_choices", "normalise", "prepare"]


def prepare(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return the completion request that goes on the wire: ``guided_*`` renamed, all else as it is."""
    return rename_guided(body)


def normalise(payload: Dict[str, Any]) -> Dict[str, Any]:
    """Return the completion, or raise `InternalServerError` if the server aborted the generation."""
    for choice in objects(payload.get("choices")):
        check_finish(choice, payload)
    return payload


def expected_choices(body: Dict[str, Any]) -> int:
    """Return how many choices a request asks for: ``n`` for each prompt."""
    count = body.get("n")
    choices = count if isinstance(count, int) and count > 0 else 1
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        choices *= len(prompt)
    return choices


class CompletionAccumulator:
    """Fold the chunks of a text stream into the completion that the same request gives without streaming."""

    def __init__(self) -> None:
        self._top: Dict[str, Any] = {}
        self._choices: Dict[int, Dict[str, Any]] = {}

    def feed(self, chunk: Dict[str, Any]) -> None:
        """Add one chunk."""
        for key, value in chunk.items():
            if key != "choices":
                latest(self._top, key, value)
        for choice in objects(chunk.get("choices")):
            index = choice.get("index") or 0
            folded = self._choices.setdefault(index, {"index": index, "text": "", "finish_reason": None})
            for key, value in choice.items():
                if key == "text":
                    folded["text"] += value or ""
                elif key != "index":
                    fold(folded, key, value)

    def completion(self) -> Dict[str, Any]:
        """Return what has arrived so far as a completion."""
        return {**self._top, "choices": [dict(self._choices[index]) for index in sorted(self._choices)]}
