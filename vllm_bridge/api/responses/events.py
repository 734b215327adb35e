"""Chat chunks, or a whole chat completion, → Responses events and the Response that they end in."""

from typing import Any, Dict, Iterable, Iterator, List, Optional

from ...errors import BridgeError, IncompleteStreamError, RequestCancelledError, payload_error
from ..folding import index_of, joined, objects
from ..tool_calls import arguments_text
from .client_tools import CLIENT_TOOLS
from .output import PARTS, CallDraft, CallIds, ChoiceDraft, ItemDraft, annotations_of, logprobs_of, part_of, text_of
from .response import (
    CHAT_FIELDS, Outcome, ResponseContext, chat_id_of, error_event, error_outcome, kept, outcome, render, usage_of,
)

__all__ = ["ResponseEvents", "from_chat", "iter_events"]

Json = Dict[str, Any]

# The keys of a chunk, and of its choice, that brings text and nothing else.
_PLAIN_CHUNK = frozenset(("id", "object", "created", "model", "choices"))
_PLAIN_CHOICE = frozenset(("index", "delta", "logprobs", "finish_reason", "token_ids"))
_LEGACY = -1  # the number of the one call of the form before tools


def from_chat(completion: Json, context: Optional[ResponseContext] = None) -> Json:
    """Return the complete Response for a chat completion: what the events of one chunk with all of it end in.

    Every choice yields its items, in order: reasoning, message, calls. Fields that only vLLM sends
    are kept where they are not null: those of the completion at the top, those of a choice and its
    message under ``chat_choices``, beside its ``index`` and ``finish_reason``.
    """
    choices = []
    for choice in sorted(objects(completion.get("choices")), key=index_of):
        message = choice.get("message")
        delta = dict(message) if isinstance(message, dict) else {}
        delta["tool_calls"] = [dict(call, index=at) for at, call in enumerate(objects(delta.get("tool_calls")))]
        choices.append(dict(choice, delta=delta))
    machine = ResponseEvents(context)
    machine.take(dict(completion, choices=choices))
    machine.finish()
    assert machine.response is not None
    return machine.response


def iter_events(chunks: Iterable[Json], context: Optional[ResponseContext] = None) -> Iterator[Json]:
    """Yield the Responses events of a chat stream.

    An error before the first event is raised; a later one becomes ``response.failed``, unless it is the reader's own
    wish, `RequestCancelledError`. Exceptions that are not the bridge's pass.
    """
    machine = ResponseEvents(context)
    try:
        for chunk in chunks:
            if isinstance(chunk, bytes):  # a comment, which passes
                yield chunk
            else:
                yield from machine.feed(chunk)
    except BridgeError as error:
        if not machine.opened or isinstance(error, RequestCancelledError):
            raise
        last = error.payload
        if isinstance(error, IncompleteStreamError) and isinstance(last, dict):
            # The chunk that says abort may bring text (tests/data/vllm-0.32.0/kill_sigterm_api_chat_stream.json).
            yield from machine.feed(last)
        yield from machine.fail(error)
    else:
        yield from machine.finish()


class ResponseEvents:
    """Turns chat chunks into Responses events, each an object with ``type`` and ``sequence_number``.

    Give every chunk to `feed`, then call `finish`, or `fail` with what went wrong; the one terminal
    event comes from these two, after all usage. ``response`` is then the final Response; while the
    stream lasts it is ``None``. What comes after the terminal event is ignored.

    Items are closed when another kind of item begins, calls all at the end, since fragments of
    parallel calls may come interleaved. A call is announced when its id and name are known, one that the client runs
    and those after it at the end. With several choices the first is told live and the others, in order, at the end.
    """

    def __init__(self, context: Optional[ResponseContext] = None) -> None:
        self.opened = False
        self.response: Optional[Json] = None
        self._context = context or ResponseContext()
        self._number = 0
        self._out: List[Json] = []
        self._over = False
        self._head: Json = {}  # the first chunk: id, time and model
        self._ids = CallIds("")
        self._usage: Any = None
        self._extra: Json = {}
        self._output: List[Json] = []
        self._choice = ChoiceDraft(0)
        self._ended: List[ChoiceDraft] = []
        self._waiting: Dict[int, List[Json]] = {}
        self._text: Optional[ItemDraft] = None  # set while a text part is open: the fast way

    # ------------------------------------------------------------ the verbs

    def feed(self, chunk: Json) -> List[Json]:
        """Return the events of one chat chunk; one that is an error fails the Response."""
        item = self._text
        text = "" if item is None else _plain_text(chunk)
        if item is not None and text:
            item.pieces.append(text)
            number = self._number
            self._number = number + 1
            return [{
                "type": "response.output_text.delta", "sequence_number": number, **item.at, "delta": text,
                "logprobs": [],
            }]
        if self._over:
            return []
        if "error" in chunk or "choices" not in chunk:
            error = payload_error(chunk)
            if error is not None:
                return self.fail(error)
        return self.take(chunk)

    def take(self, chunk: Json) -> List[Json]:
        """Return the events of a chat chunk that is known to be no error."""
        self._out = []
        if not self.opened:
            self._open(chunk)
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        if isinstance(chunk.get("service_tier"), str):
            self._head["service_tier"] = chunk["service_tier"]
        if not chunk.keys() <= CHAT_FIELDS:
            self._extra.update(kept(chunk, CHAT_FIELDS))
        for choice in objects(chunk.get("choices")):
            index = index_of(choice)
            if index == 0:
                self._take_choice(choice)
            else:
                self._waiting.setdefault(index, []).append(choice)
        return self._out

    def finish(self) -> List[Json]:
        """Return the events that close a stream which came to its end."""
        if self._over:
            return []
        if not self.opened:
            return self.fail(IncompleteStreamError("the stream ended before it brought an answer"))
        self._out = []
        self._end_choices(False)
        self._end(outcome([ended.finish_reason for ended in self._ended]))
        return self._out

    def fail(self, error: BridgeError) -> List[Json]:
        """Return the events that close a stream which an error ended."""
        if self._over:
            return []
        self._out = []
        if self.opened:
            self._end_choices(True)
            self._end(error_outcome(error))
        else:  # no id to report a Response under
            self._over = True
            self._out.append(error_event(error, self._number))
        return self._out

    # ------------------------------------------------------------ chunks

    def _open(self, chunk: Json) -> None:
        self.opened = True
        self._head = {key: chunk.get(key) for key in ("id", "created", "model")}
        self._ids = CallIds(chat_id_of(chunk))
        for kind in ("response.created", "response.in_progress"):
            self._emit(kind, response=render(self._context, self._head, Outcome("in_progress"), []))

    def _take_choice(self, choice: Json) -> None:
        self._choice.fold(choice)
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        # vLLM says reasoning since 0.16, reasoning_content before; a bridge may mirror them.
        thought = text_of(delta.get("reasoning") or delta.get("reasoning_content"))
        self._say("reasoning", self._context.reasoning, thought)
        text = text_of(delta.get("content"))
        if text:
            self._say("message", "output_text", text, logprobs=logprobs_of(choice.get("logprobs")))
        for annotation in annotations_of(delta.get("annotations")):
            self._annotate(annotation)
        self._say("message", "refusal", text_of(delta.get("refusal")))
        for place, fragment in enumerate(objects(delta.get("tool_calls"))):
            self._fragment(self._choice.numbers.number(fragment, place), fragment)
        if isinstance(delta.get("function_call"), dict):  # the form before tools
            self._fragment(_LEGACY, {"function": delta["function_call"]})

    # ------------------------------------------------------------ reasoning and messages

    def _say(self, kind: str, part: str, text: str, **fields: Any) -> None:
        """Tell a piece of text, of an item of this kind and in a part of this type."""
        if text:
            item = self._part(kind, part)
            item.pieces.append(text)
            self._emit(PARTS[part].text_event + ".delta", **item.where(), delta=text, **fields)

    def _annotate(self, annotation: Json) -> None:
        item = self._part("message", "output_text")
        at = len(item.annotations)
        item.annotations.append(annotation)
        told = "response.output_text.annotation.added"
        self._emit(told, **item.where(), annotation_index=at, annotation=annotation)

    def _part(self, kind: str, part: str) -> ItemDraft:
        """Return the open item with a part of this type open; end what is open instead."""
        item = self._choice.item
        if item is None or item.kind != kind:
            self._end_item("completed", False)
            item = self._choice.item = ItemDraft(kind, self._name(), len(self._output), self._context)
            self._add(item.shown("in_progress"))
        if item.part != part:
            self._end_part(item, False)
            item.part = part
            self._emit(PARTS[part].part_event + ".added", **item.where(), part=part_of(part, ""))
            if part == "output_text" and self._choice.index == 0:
                self._text, item.at = item, item.where()
        return item

    def _end_part(self, item: ItemDraft, at_end: bool) -> None:
        if not item.part:
            return
        self._text = None
        place, text, fields = PARTS[item.part], joined(item.pieces), {}
        if item.part == "output_text":
            fields["logprobs"] = self._choice.place(text, at_end)
        elif item.kind == "reasoning":
            self._choice.thoughts += text
        part = part_of(item.part, text, **fields)
        self._emit(place.text_event + ".done", **item.where(), **{place.field: text}, **fields)
        if item.annotations:
            part["annotations"] = item.annotations
        self._emit(place.part_event + ".done", **item.where(), part=part)
        item.end_part(part)

    def _end_item(self, status: str, at_end: bool) -> None:
        item = self._choice.item
        self._choice.item = None
        if item is not None:
            self._end_part(item, at_end)
            self._close(item.output_index, item.shown(status))

    # ------------------------------------------------------------ calls

    def _fragment(self, number: int, fragment: Json) -> None:
        call = self._choice.call(number)
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = arguments_text(function.get("arguments"))
        call.take(fragment.get("id"), function.get("name"), arguments)
        if call.opened:
            self._arguments(call, arguments)
            return
        for waiting in self._choice.calls.values():  # in their order, so that indexes follow it
            if not waiting.opened:
                # What a call that the client runs is, its arguments tell.
                if not (waiting.call_id and waiting.name) or self._context.tool(waiting.name).kind in CLIENT_TOOLS:
                    break
                self._open_call(waiting, False)

    def _open_call(self, call: CallDraft, whole: bool) -> None:
        self._end_item("completed", False)
        call.opened = True
        call.settle(self._context.tool(call.name), whole)
        call.call_id = self._ids.take(call.call_id, self._choice.index, max(call.number, 0))
        call.item_name, call.output_index = self._name(), len(self._output)
        item = call.item("in_progress", "")
        call.item_id = item["id"]
        self._add(item)
        self._arguments(call, joined(call.pieces))

    def _arguments(self, call: CallDraft, arguments: str) -> None:
        if arguments and call.tool.kind == "function":  # a custom tool's input is inside, known when complete
            at = {"item_id": call.item_id, "output_index": call.output_index}
            self._emit("response.function_call_arguments.delta", **at, delta=arguments)

    def _end_call(self, call: CallDraft, status: str) -> None:
        item = call.item(status, joined(call.pieces))
        at = {"item_id": call.item_id, "output_index": call.output_index}
        if call.tool.kind == "custom":
            if item["input"]:
                self._emit("response.custom_tool_call_input.delta", **at, delta=item["input"])
            self._emit("response.custom_tool_call_input.done", **at, input=item["input"])
        elif call.tool.kind == "function":
            done = "response.function_call_arguments.done"
            self._emit(done, **at, name=item["name"], arguments=item["arguments"])
        self._close(call.output_index, item)

    # ------------------------------------------------------------ items

    def _name(self) -> str:
        """Return the next item's id without its prefix."""
        return "%s_item_%d" % (chat_id_of(self._head), len(self._output))

    def _add(self, item: Json) -> None:
        self._emit("response.output_item.added", output_index=len(self._output), item=item)
        self._output.append(item)

    def _close(self, output_index: int, item: Json) -> None:
        self._output[output_index] = item
        self._emit("response.output_item.done", output_index=output_index, item=item)

    # ------------------------------------------------------------ the end

    def _end_choices(self, failed: bool) -> None:
        self._end_choice(failed)
        for index in sorted(self._waiting):
            self._choice = ChoiceDraft(index)
            for choice in self._waiting[index]:
                self._take_choice(choice)
            self._end_choice(failed)

    def _end_choice(self, failed: bool) -> None:
        """Close what is open, in the order of ``output_index``; the last of it may be cut short."""
        choice = self._choice
        complete = not failed and outcome([choice.finish_reason]).status == "completed"
        waiting = [call for call in choice.calls.values() if not call.opened]
        last = len(self._output) + len(waiting) - 1
        for call in waiting:
            self._open_call(call, complete or len(self._output) != last)
        for call in choice.calls.values():
            whole = call.well_formed() and (complete or call.output_index != last)
            self._end_call(call, "completed" if whole else "incomplete")
        self._end_item("completed" if complete else "incomplete", True)
        if choice.seen:
            self._ended.append(choice)

    def _end(self, result: Outcome) -> None:
        self._over = True
        self._extra["chat_choices"] = [ended.record() for ended in self._ended]
        usage = usage_of(self._usage)
        self.response = render(self._context, self._head, result, self._output, usage, self._extra)
        self._emit("response." + result.status, response=self.response)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._out.append({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1


def _plain_text(chunk: Json) -> str:
    """Return the text of a chunk that brings nothing else, for the first choice; ``""`` of any other chunk."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return ""
    choice = choices[0]
    delta = choice.get("delta")
    if not isinstance(delta, dict) or len(delta) != 1 or choice.get("index") or choice.get("finish_reason"):
        return ""
    if choice.get("logprobs") or choice.get("token_ids"):
        return ""
    text = delta.get("content")
    if isinstance(text, str) and chunk.keys() <= _PLAIN_CHUNK and choice.keys() <= _PLAIN_CHOICE:
        return text
    return ""
