"""POST /tokenize and /detokenize, GET /tokenizer_info: a token is a word and the space before it."""

from typing import Any, Dict

from .directives import Plan
from .generate import pieces, text_of, token_id
from .refusal import invalid, missing, problem
from .reply import Reply, World

_WORDS: Dict[int, str] = {}  # what has been tokenized: a hash alone leads to no word


def needs_text(body: Dict[str, Any]) -> None:
    """Raise Refusal for a request without a text."""
    if "prompt" not in body and "messages" not in body:
        raise invalid(missing("body.prompt", body), missing("body.messages", body))


def heard(body: Dict[str, Any]) -> str:
    """Return the text that the directives are read from."""
    return str(body.get("prompt") or "")


def tokenize(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer with the ids of a text's words."""
    messages = body.get("messages") or []
    text = plan.text if "prompt" in body else "\n".join(text_of(message.get("content")) for message in messages)
    words = pieces(text)
    found = [token_id(word) for word in words]
    _WORDS.update(zip(found, words))
    return Reply({"count": len(found), "max_model_len": world.max_model_len, "tokens": found,
                  "token_strs": words if body.get("return_token_strs") else None})


def needs_tokens(body: Dict[str, Any]) -> None:
    """Raise Refusal for what are no ids (detokenize_negative)."""
    if "tokens" not in body:
        raise invalid(missing("body.tokens", body))
    for place, token in enumerate(body["tokens"]):
        if token < 0:
            raise invalid(problem("greater_than_equal", "body.tokens.%d" % place,
                                  "Input should be greater than or equal to 0", token, ge=0))


def detokenize(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer with the words of ids, nothing for one that no text here had."""
    return Reply({"prompt": "".join(_WORDS.get(token, "") for token in body["tokens"])})
