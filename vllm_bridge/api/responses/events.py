"""Chat chunks → Responses events (SPEC §5.3): a state machine, and a generator over it."""

from typing import Any, Dict, Iterable, Iterator, List, Optional, Union

from ...errors import BridgeError, IncompleteStreamError, RequestCancelledError, payload_error
from .context import ResponseContext
from .drafts import CallDraft, ChoiceDraft, MessageDraft, ReasoningDraft
from .output import CallIds, annotations_of, arguments_text, dicts, logprobs_of, text_of
from .partial import error_event
from .response import (
    CHAT_FIELDS,
    Outcome,
    chat_id_of,
    error_outcome,
    index_of,
    item_name,
    kept,
    outcome,
    render,
    usage_of,
)

__all__ = ["ResponseEvents", "iter_events"]

Json = Dict[str, Any]

# The keys of a chunk, and of its choice, that brings text and nothing else.
_PLAIN_CHUNK = frozenset(("id", "object", "created", "model", "choices"))
_PLAIN_CHOICE = frozenset(("index", "delta", "logprobs", "finish_reason", "token_ids"))


def iter_events(chunks: Iterable[Json], context: Optional[ResponseContext] = None) -> Iterator[Json]:
    """Yield the Responses events of a chat stream.

    An error before the first event is raised; a later one becomes ``response.failed``, unless it is the reader's own
    wish, `RequestCancelledError`.
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
            yield from machine.feed(last)  # the chunk that says abort may bring text (kill_sigterm_api_chat_stream)
        yield from machine.fail(error)
    else:
        yield from machine.finish()


class ResponseEvents:
    """Turns chat chunks into Responses events, each an object with ``type`` and ``sequence_number``.

    Give every chunk to `feed`, then call `finish`, or `fail` with what went wrong; the one terminal
    event comes from these two, after all usage. ``response`` is then the final Response; while the
    stream lasts it is ``None``. What comes after the terminal event is ignored.

    Items are closed when another kind of item begins, calls all at the end, since fragments of
    parallel calls may come interleaved. A call is announced when its id and name are known. With
    several choices the first is told live and the others, in order, at the end.
    """

    def __init__(self, context: Optional[ResponseContext] = None) -> None:
        self.opened = False
        self.response: Optional[Json] = None
        self._context = context or ResponseContext()
        self._number = 0
        self._out: List[Json] = []
        self._over = False
        self._head: Json = {}  # the first chunk: id, time and model
        self._chat_id = ""
        self._ids = CallIds("")
        self._usage: Any = None
        self._extra: Json = {}
        self._output: List[Json] = []
        self._choice = ChoiceDraft(0)
        self._ended: List[ChoiceDraft] = []
        self._waiting: Dict[int, List[Json]] = {}
        self._text: Optional[MessageDraft] = None  # set while a text part is open: the fast way

    # ------------------------------------------------------------ the three verbs

    def feed(self, chunk: Json) -> List[Json]:
        """Return the events of one chat chunk."""
        draft = self._text
        if draft is not None and chunk.keys() <= _PLAIN_CHUNK:
            choices = chunk.get("choices")
            if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict):
                choice = choices[0]
                delta = choice.get("delta")
                if (
                    isinstance(delta, dict)
                    and len(delta) == 1
                    and "content" in delta
                    and choice.get("finish_reason") is None
                    and choice.get("logprobs") is None
                    and choice.get("token_ids") is None
                    and not choice.get("index")
                    and choice.keys() <= _PLAIN_CHOICE
                ):
                    text = delta["content"]
                    if text and isinstance(text, str):
                        draft.pieces.append(text)
                        number = self._number
                        self._number = number + 1
                        return [
                            {
                                "type": "response.output_text.delta",
                                "sequence_number": number,
                                "item_id": draft.item_id,
                                "output_index": draft.output_index,
                                "content_index": draft.content_index,
                                "delta": text,
                                "logprobs": [],
                            }
                        ]
        return self._feed(chunk)

    def finish(self) -> List[Json]:
        """Return the events that close a stream which came to its end."""
        if self._over:
            return []
        if not self.opened:
            return self.fail(IncompleteStreamError("the stream ended before it brought an answer"))
        self._out = []
        self._end_choices(None)
        self._terminal(outcome([ended.finish_reason for ended in self._ended]))
        return self._out

    def fail(self, error: BridgeError) -> List[Json]:
        """Return the events that close a stream which an error ended."""
        if self._over:
            return []
        self._out = []
        if self.opened:
            self._end_choices("incomplete")
            self._terminal(error_outcome(error))
        else:  # no id to report a Response under
            self._over = True
            self._out.append(error_event(error, self._number))
            self._number += 1
        return self._out

    # ------------------------------------------------------------ chunks

    def _feed(self, chunk: Json) -> List[Json]:
        if self._over:
            return []
        if "error" in chunk or "choices" not in chunk:
            error = payload_error(chunk)
            if error is not None:
                return self.fail(error)
        self._out = []
        if not self.opened:
            self._open(chunk)
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        if isinstance(chunk.get("service_tier"), str):
            self._head["service_tier"] = chunk["service_tier"]
        if len(chunk) > len(_PLAIN_CHUNK):
            self._extra.update(kept(chunk, CHAT_FIELDS))
        for choice in dicts(chunk.get("choices")):
            index = index_of(choice)
            if index == 0:
                self._take(choice)
            else:
                self._waiting.setdefault(index, []).append(choice)
        return self._out

    def _open(self, chunk: Json) -> None:
        self.opened = True
        self._head = {key: chunk.get(key) for key in ("id", "created", "model")}
        self._chat_id = chat_id_of(chunk)
        self._ids = CallIds(self._chat_id)
        for kind in ("response.created", "response.in_progress"):
            self._emit(kind, response=render(self._context, self._head, Outcome("in_progress"), []))

    def _take(self, choice: Json) -> None:
        """Take in one choice of a chunk."""
        draft = self._choice
        draft.fold(choice)
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        tokens = logprobs_of(choice.get("logprobs"))
        # vLLM says reasoning since 0.16, reasoning_content before; a bridge may mirror them.
        thought = text_of(delta.get("reasoning") or delta.get("reasoning_content"))
        if thought:
            self._think(thought)
        text = text_of(delta.get("content"))
        if text:
            self._say(text, tokens)
        for annotation in annotations_of(delta.get("annotations")):
            self._annotate(annotation)
        refusal = text_of(delta.get("refusal"))
        if refusal:
            self._refuse(refusal)
        for fragment in dicts(delta.get("tool_calls")):
            self._fragment(draft.call_of(fragment), fragment)
        if isinstance(delta.get("function_call"), dict):  # the form before tools
            self._fragment(draft.legacy_call(), {"function": delta["function_call"]})

    # ------------------------------------------------------------ reasoning

    def _think(self, text: str) -> None:
        item = self._choice.item
        if not isinstance(item, ReasoningDraft):
            item = ReasoningDraft(self._begin("rs_"), len(self._output))
            self._add(item, item.item(""))
            at = {"item_id": item.item_id, "output_index": item.output_index}
            self._emit(_SUMMARY + "_part.added", **at, summary_index=0, part=_summary(""))
            self._emit("response.content_part.added", **at, content_index=0, part=_thought(""))
        item.pieces.append(text)
        at = {"item_id": item.item_id, "output_index": item.output_index}
        self._emit(_SUMMARY + "_text.delta", **at, summary_index=0, delta=text)
        self._emit("response.reasoning_text.delta", **at, content_index=0, delta=text)

    def _end_reasoning(self, item: ReasoningDraft, status: str) -> None:
        text = "".join(item.pieces)
        at = {"item_id": item.item_id, "output_index": item.output_index}
        self._emit(_SUMMARY + "_text.done", **at, summary_index=0, text=text)
        self._emit(_SUMMARY + "_part.done", **at, summary_index=0, part=_summary(text))
        self._emit("response.reasoning_text.done", **at, content_index=0, text=text)
        self._emit("response.content_part.done", **at, content_index=0, part=_thought(text))
        self._choice.thoughts += text
        self._close(item.output_index, item.item(status))

    # ------------------------------------------------------------ messages

    def _message(self) -> MessageDraft:
        item = self._choice.item
        if not isinstance(item, MessageDraft):
            item = MessageDraft(self._begin("msg_"), len(self._output))
            self._add(item, item.item("in_progress"))
        return item

    def _open_part(self, kind: str) -> MessageDraft:
        item = self._message()
        if item.kind != kind:
            self._end_part(item, False)
            item.kind = kind
            self._emit("response.content_part.added", **item.where(), part=item.part([]))
            if kind == "output_text":
                self._text = item if self._choice.index == 0 else None
        return item

    def _say(self, text: str, tokens: List[Json]) -> None:
        item = self._open_part("output_text")
        item.pieces.append(text)
        self._emit("response.output_text.delta", **item.where(), delta=text, logprobs=tokens)

    def _annotate(self, annotation: Json) -> None:
        item = self._open_part("output_text")
        index = len(item.annotations)
        item.annotations.append(annotation)
        self._emit(
            "response.output_text.annotation.added",
            **item.where(),
            annotation_index=index,
            annotation=annotation,
        )

    def _refuse(self, text: str) -> None:
        item = self._open_part("refusal")
        item.pieces.append(text)
        self._emit("response.refusal.delta", **item.where(), delta=text)

    def _end_part(self, item: MessageDraft, at_end: bool) -> None:
        if not item.kind:
            return
        self._text = None
        tokens = self._choice.place(item, at_end) if item.kind == "output_text" else []
        part = item.part(tokens)
        if item.kind == "output_text":
            self._emit("response.output_text.done", **item.where(), text=part["text"], logprobs=tokens)
        else:
            self._emit("response.refusal.done", **item.where(), refusal=part["refusal"])
        self._emit("response.content_part.done", **item.where(), part=part)
        item.end_part(part)

    # ------------------------------------------------------------ calls

    def _fragment(self, call: CallDraft, fragment: Json) -> None:
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = arguments_text(function.get("arguments"))
        call.latch(fragment.get("id"), function.get("name"))
        if arguments:
            call.pieces.append(arguments)
        if call.opened:
            if arguments:
                self._arguments(call, arguments)
            return
        for waiting in self._choice.calls:  # in their order, so that indexes follow it
            if not waiting.opened:
                if not (waiting.call_id and waiting.name):
                    break
                self._open_call(waiting)

    def _open_call(self, call: CallDraft) -> None:
        self._end_item("completed", False)
        tool = self._context.tool(call.name)
        call.open(tool, self._ids.take(call.call_id, self._choice.index, call.number), self._next())
        call.output_index = len(self._output)
        item = call.item("in_progress", "")
        call.item_id = item["id"]
        self._emit("response.output_item.added", output_index=call.output_index, item=item)
        self._output.append(item)
        arguments = "".join(call.pieces)
        if arguments:
            self._arguments(call, arguments)

    def _arguments(self, call: CallDraft, arguments: str) -> None:
        if call.tool.kind == "function":  # a custom tool's input is inside, known when complete
            at = {"item_id": call.item_id, "output_index": call.output_index}
            self._emit("response.function_call_arguments.delta", **at, delta=arguments)

    def _end_call(self, call: CallDraft, status: str) -> None:
        item = call.item(status, "".join(call.pieces))
        at = {"item_id": call.item_id, "output_index": call.output_index}
        if call.tool.kind == "custom":
            given = item["input"]
            if given:
                self._emit("response.custom_tool_call_input.delta", **at, delta=given)
            self._emit("response.custom_tool_call_input.done", **at, input=given)
        else:
            self._emit(
                "response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"]
            )
        self._close(call.output_index, item)

    # ------------------------------------------------------------ items

    def _begin(self, prefix: str) -> str:
        """End the open item and return the id of the next."""
        self._end_item("completed", False)
        return prefix + self._next()

    def _next(self) -> str:
        return item_name(self._chat_id, len(self._output))

    def _add(self, item: Union[ReasoningDraft, MessageDraft], shown: Json) -> None:
        self._choice.item = item
        self._output.append(shown)
        self._emit("response.output_item.added", output_index=item.output_index, item=shown)

    def _end_item(self, status: str, at_end: bool) -> None:
        item = self._choice.item
        self._choice.item = None
        if isinstance(item, ReasoningDraft):
            self._end_reasoning(item, status)
        elif isinstance(item, MessageDraft):
            self._end_part(item, at_end)
            self._close(item.output_index, item.item(status))

    def _close(self, output_index: int, item: Json) -> None:
        self._output[output_index] = item
        self._emit("response.output_item.done", output_index=output_index, item=item)

    # ------------------------------------------------------------ the end

    def _end_choices(self, forced: Optional[str]) -> None:
        self._end_choice(forced)
        for index in sorted(self._waiting):
            self._choice = ChoiceDraft(index)
            for choice in self._waiting[index]:
                self._take(choice)
            self._end_choice(forced)

    def _end_choice(self, forced: Optional[str]) -> None:
        """Close what is open, in the order of ``output_index``; the last of it may be cut short."""
        choice = self._choice
        for call in choice.calls:
            if not call.opened:
                self._open_call(call)
        complete = forced is None and outcome([choice.finish_reason]).status == "completed"
        last = len(self._output) - 1
        for call in choice.calls:
            whole = call.well_formed() and (complete or call.output_index != last)
            self._end_call(call, "completed" if whole else "incomplete")
        self._end_item("completed" if complete else "incomplete", True)
        if choice.seen:
            self._ended.append(choice)

    def _terminal(self, result: Outcome) -> None:
        self._over = True
        self._extra["chat_choices"] = [ended.record() for ended in self._ended]
        usage = usage_of(self._usage)
        self.response = render(self._context, self._head, result, self._output, usage, self._extra)
        self._emit("response." + result.status, response=self.response)

    def _emit(self, kind: str, **fields: Any) -> None:
        event: Json = {"type": kind, "sequence_number": self._number}
        event.update(fields)
        self._number += 1
        self._out.append(event)


_SUMMARY = "response.reasoning_summary"


def _summary(text: str) -> Json:
    return {"type": "summary_text", "text": text}


def _thought(text: str) -> Json:
    return {"type": "reasoning_text", "text": text}
