"""Which server a request goes to: the ways that there are, on what is known of the servers without asking them.

`expected_wait` takes the server that is likely to answer soonest: by the work that is there, what of this prompt it has
not seen, and how slow it has shown itself. All numbers are tokens, of four characters each.
"""

from itertools import accumulate
from marshal import dumps
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from .prefixes import Prefixes

if TYPE_CHECKING:
    from .keys import Rule

__all__ = ["Load", "Prompt", "WAYS", "expected_wait", "least_requests"]

REQUEST = 50.0  # tokens that a running request delays another by, whatever it is
TOKEN = 2.0  # tokens of a prompt that one of an answer is worth
LEAST = 50.0  # tokens of which an expectation is one

ANSWER = 64.0  # tokens of an answer whose length nobody has said
_PIECE = 4096  # characters of a text that is looked at in pieces
_TEXT = frozenset((str,))
_MEMORY = 0.05  # weight of a new observation
_SLOWEST, _FASTEST = 8.0, 0.2
_ALIKE = 0.7  # servers that differ by less share what comes while they have nothing to do
_KINDS = 1000  # of which an average is kept
_NEAR = 1.02  # waits that differ by less are alike


class Load:
    """What a server has to do, and how slow it is."""

    def __init__(self) -> None:
        self.bit = 0  # its own one in the masks of `Prefixes`
        self.waiting = 0.0  # tokens of requests that have had no answer yet
        self.running = 0  # requests
        self.answering = 0.0  # tokens of their answers
        self.slow = 1.0  # how long it takes, by how long the servers take on average
        self.idle = 1.0  # the same for one that has nothing to do: differences that say little do not count then
        self.strain = 1.0  # above 1 while it is new, or silent: work weighs more


class Prompt:
    """A request as routing sees it: `marks` stand for the prompt up to the end of each message, `sizes` are theirs.

    Sizes are characters here, all else is tokens.
    """

    rule: Optional["Rule"] = None  # where it is
    place = 0  # of the first message that is new to its server
    unseen = 0.0  # tokens of it that are new to its server
    started = begun = expected = 0.0
    waits = False
    kind: Any = None  # requests of one kind are compared with each other

    def __init__(
        self, marks: Sequence[int], sizes: Sequence[int], answer: float, session: Optional[int] = None
    ) -> None:
        self.marks = marks
        self.sizes = sizes
        self.answer = answer
        self.session = session


def measured(wire: Any, answers: bool, session: Optional[str] = None) -> Prompt:
    """Return what routing has to know of a request body; `answers`: it is answered by a text."""
    if not isinstance(wire, dict):
        return Prompt((), (), 0.0)
    get = wire.get
    messages = get("messages")
    marks: Sequence[int] = ()
    sizes: Sequence[int] = ()
    try:
        marks, sizes = _texts([message["content"] for message in messages or ()], "tools" in wire and wire["tools"])
        if not sizes:
            marks, sizes = _measured(wire)
    except (KeyError, TypeError):  # parts, calls of tools, another operation, or what is none
        marks, sizes = _measured(wire)
    answer = 0.0
    if answers:
        most = get("max_completion_tokens") or get("max_tokens")
        answer = most if type(most) is int else ANSWER
    given = session or get("prompt_cache_key") or get("user")
    return Prompt(marks, sizes, answer, hash(given) if type(given) is str else None)


def _texts(texts: List[str], tools: Any) -> Tuple[Sequence[int], Sequence[int]]:
    """Return the marks and sizes of texts that follow each other; raises `TypeError` for what is no text, or long."""
    sizes = [*map(len, texts)]
    if tools or max(sizes, default=0) > _PIECE or not _TEXT.issuperset(map(type, texts)):
        raise TypeError
    # Sums, for they are made without a loop of Python's; whether texts change places means nothing here.
    return [*accumulate(map(hash, texts))], sizes


def _measured(wire: Dict[str, Any]) -> Tuple[Sequence[int], Sequence[int]]:
    """Return the marks and sizes of any request."""
    pieces: List[Any] = []
    try:
        if wire.get("tools"):
            _add(pieces, dumps(wire["tools"], 2))
        main = wire.get("messages") or wire.get("prompt") or wire.get("input") or wire.get("documents") or ()
        if main is ...:
            _add(pieces, wire.data)  # type: ignore[attr-defined]
        elif type(main) is str:
            _add(pieces, main)
        elif main and type(main[0]) is int:
            _add(pieces, dumps(main, 2))
        else:
            for message in main:
                _message(pieces, message)
    except (AttributeError, KeyError, TypeError, ValueError):
        pass  # it is the server's to say what is wrong with it
    return [*accumulate(map(hash, pieces))], [min(len(piece), _PIECE) for piece in pieces]


def _message(pieces: List[Any], message: Any) -> None:
    if not isinstance(message, dict):
        return _add(pieces, message if type(message) is str else dumps(message, 2))
    content = message.get("content")
    for part in content if type(content) is list else (content,):
        text = part.get("text") if isinstance(part, dict) else part
        if type(text) is str:
            _add(pieces, text)
        elif part is not None:
            pieces.append(dumps(part, 2))  # an image or a sound counts as one piece, however long it is
    return _add(pieces, dumps([value for name, value in message.items() if name not in ("role", "content")], 2))


def _add(pieces: List[Any], text: Any) -> None:
    """Add a text, or bytes, in pieces: what is the same at the beginning of long ones is found too."""
    if len(text) <= _PIECE:
        pieces.append(text)
    else:
        pieces += [text[start:start + _PIECE] for start in range(0, len(text), _PIECE)]


# ---------------------------------------------------------------- the ways


def expected_wait(rules: Sequence["Rule"], prompt: Prompt, prefixes: Prefixes, random: Callable[[], float]) -> "Rule":
    """Return the rule whose server is likely to answer soonest; of those that are alike the one that is due."""
    unseen = prefixes.unseen(prompt)
    one = unseen[0] if len(unseen) == 1 else None  # it is new to all
    best, least, new = rules[0], float("inf"), unseen[-1]
    for rule in rules:
        server = rule.server
        part = one
        if part is None:
            bit = server.bit
            for part in unseen:
                if part[0] & bit:
                    break
        work = server.waiting + REQUEST * server.running + TOKEN * server.answering
        slow = server.slow if server.running else server.idle
        wait = slow * (part[1] + work * rule.ease * server.strain)  # type: ignore[index]
        if wait * _NEAR < least or (wait <= least * _NEAR and rule.sent < best.sent):
            if wait < least:
                least = wait
            best, new = rule, part  # type: ignore[assignment]
    prompt.unseen, prompt.place = new[2] / 4.0, new[3]
    prefixes.note(prompt, best.server.bit, prompt.place)
    return best


def least_requests(rules: Sequence["Rule"], prompt: Prompt, prefixes: Prefixes, random: Callable[[], float]) -> "Rule":
    """Return the rule whose server has the fewest requests for its weight."""
    return min(rules, key=lambda rule: (rule.server.running * rule.ease, rule.sent))


def round_robin(rules: Sequence["Rule"], prompt: Prompt, prefixes: Prefixes, random: Callable[[], float]) -> "Rule":
    """Return the rules in turn, those of a greater weight more often."""
    return min(rules, key=lambda rule: rule.sent)


def by_lot(
    rules: Sequence["Rule"], prompt: Optional[Prompt], prefixes: Prefixes, random: Callable[[], float]
) -> "Rule":
    """Return a rule by lot, those of a greater weight more often."""
    mark = random() * sum(1.0 / rule.ease for rule in rules)
    for rule in rules:
        mark -= 1.0 / rule.ease
        if mark < 0:
            break
    return rule


WAYS: Mapping[str, Callable[..., "Rule"]] = {
    "expected_wait": expected_wait, "random": by_lot, "round_robin": round_robin, "least_requests": least_requests,
}


# ---------------------------------------------------------------- what a request does to a load


class Pace:
    """How long a token takes: of what was expected before an answer, and of the answer; on average over all servers."""

    def __init__(self) -> None:
        self._seconds: Dict[Any, float] = {}

    def observe(self, load: Load, kind: Any, each: float) -> None:
        """Take note of how many seconds each token of a kind took at a server."""
        average = self._seconds.get(kind)
        if average is None and len(self._seconds) >= _KINDS:
            return
        self._seconds[kind] = each if average is None else average + _MEMORY * (each - average)
        if not average:  # the first one, or no time that could be measured
            return
        slow = load.slow + _MEMORY * (min(each / average, 4 * _SLOWEST) - load.slow)
        load.slow = max(_FASTEST, min(_SLOWEST, slow))
        load.idle = 1.0 if _ALIKE < slow < 1 / _ALIKE else load.slow


def enter(rule: "Rule", prompt: Prompt, now: float) -> None:
    """Count a request at a server."""
    load = rule.server
    prompt.rule, prompt.started, prompt.waits = rule, now, True
    expected = load.waiting + REQUEST * load.running + TOKEN * load.answering + prompt.unseen
    prompt.expected = expected if expected > LEAST else LEAST
    load.waiting += prompt.unseen
    load.running += 1
    load.answering += prompt.answer
    rule.sent += rule.ease


def leave(prompt: Prompt) -> None:
    """Count a request no longer."""
    rule = prompt.rule
    if rule is not None:
        begin(prompt)
        load = rule.server
        load.running -= 1
        load.answering -= prompt.answer
        prompt.rule = None


def begin(prompt: Prompt) -> None:
    """Count a request as answered: it waits no longer."""
    if prompt.waits and prompt.rule is not None:
        prompt.waits = False
        prompt.rule.server.waiting -= prompt.unseen
