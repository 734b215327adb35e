"""What a caller's type checker must not flag. Never executed."""

from typing import Any, Dict, List, Optional, TypedDict, Union

from vllm_bridge import APIStatusError, BridgeError, Cancellation, IncompleteStreamError, Record, Stream, Trace
from vllm_bridge import VLLMProvider, audio, image
from vllm_bridge.api.parameters import ChatCompletionRequest, ContentPart, Message, Tool
from vllm_bridge.api.records import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    Completion,
    EmbeddingList,
    ModelList,
    Rerank,
    Response,
    ResponseEvent,
    ToolCall,
    Transcription,
    TranscriptionEvent,
)

vllm = VLLMProvider("http://localhost:8000", api_key="k", timeout=(5, 600))
same: VLLMProvider = vllm.with_options(timeout=5)


def constructors(session: Any) -> None:
    VLLMProvider()
    VLLMProvider(timeout=None, max_retries=0, headers={"X-Team": "a"}, session=session)
    VLLMProvider(api_key=lambda: "k", verify="ca.pem", cert=("client.pem", "client.key"))
    VLLMProvider(auth=("ann", "secret"), verify=False, cert="both.pem")
    VLLMProvider(config={"network_config": {"base_url": "http://gpu"}})
    vllm.with_options(timeout=(5, None), deadline=None, cancel=Cancellation(), trace=Trace(), query={"a": 1})
    VLLMProvider("http://gpu-1:8000", "http://gpu-2:8000")


def chat() -> None:
    reply: ChatCompletion = vllm.chat_completion(model="m", messages=[{"role": "user", "content": "Hi"}], top_k=20)
    text: str = reply.text
    message: ChatMessage = reply.choices[0].message
    content: Optional[str] = message.content
    reasoning: Optional[str] = message.reasoning
    calls: Optional[List[ToolCall]] = message.tool_calls
    for call in message.tool_calls or ():
        name: str = call.function.name
        wrong: Optional[str] = call.arguments_error
        print(name, wrong)
    if reply.usage is not None:
        tokens: int = reply.usage.total_tokens
        print(tokens)
    reason: Union[str, int, None] = reply.choices[0].stop_reason
    print(text, content, reasoning, calls, reason, reply["choices"], reply["what_comes_tomorrow"], reply.copy().id)


def requests_made_before(prompt: str, given: Dict[str, Any]) -> None:
    ask: ChatCompletionRequest = {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    vllm.chat_completion(**ask)
    with vllm.chat_completion_stream(**ask) as stream:
        print(next(stream).text)
    vllm.chat_completion(**given)
    vllm.chat_completion(**given, timeout=5, extra_headers={"X-A": "1"}, extra_query={"b": 2}, seed=None)
    vllm.chat_completion(messages=ask["messages"], extra_body={"what_comes_tomorrow": 1})


def conversation() -> None:
    messages: List[Union[Message, Record]] = [{"role": "system", "content": "Be brief."}]
    messages.append({"role": "user", "content": "What is the weather in Paris?"})
    tool: Tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True}}
    reply = vllm.chat_completion(messages=messages, tools=[tool], tool_choice="auto", parallel_tool_calls=False)
    messages.append(reply.choices[0].message)
    for call in reply.choices[0].message.tool_calls or ():
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    vllm.chat_completion(messages=messages, tool_choice={"type": "function", "function": {"name": "weather"}})
    only_ours: List[Message] = [{"role": "assistant", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]}]
    vllm.chat_completion(messages=only_ours)


def parts() -> None:
    picture: ContentPart = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    vllm.chat_completion(messages=[{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}])
    vllm.chat_completion(messages=[{"role": "user", "content": [image("cat.png", detail="low"), audio("a.wav")]}])


class Person(TypedDict):
    name: str


def structured() -> None:
    print(vllm.chat_completion(messages=[], response_format=Person).parsed["name"])
    vllm.text_completion(prompt="x", response_format={"type": "object"})
    vllm.chat_completion(messages=[], response_format={"type": "json_schema", "json_schema": {"name": "n"}})


def streams() -> None:
    with vllm.chat_completion_stream(model="m", messages=[]) as stream:
        of_chunks: Stream[ChatCompletionChunk] = stream
        for chunk in stream:
            delta: Optional[str] = chunk.choices[0].delta.content
            print(chunk.text, delta)
        of_chunks.close()
        whole: ChatCompletion = stream.completion()
        print(stream.text, whole.text, stream.server, stream.headers)
    for part in vllm.text_completion_stream(prompt="x"):
        completion: Completion = part
        piece: str = completion.choices[0].text
        print(piece)
    for event in vllm.transcription_stream(file="a.wav"):
        spoken: TranscriptionEvent = event
        words: Optional[str] = spoken.delta
        print(words)
    answered: Response = vllm.responses_stream(input="x").completion()
    print(answered.request_id, answered.headers, answered.server, answered.elapsed)
    for told in vllm.responses_stream(input="x"):
        response_event: ResponseEvent = told
        print(response_event.sequence_number)


def others() -> None:
    vectors: EmbeddingList = vllm.embedding(input=["a"])
    first: List[float] = vectors.data[0].embedding
    vllm.embedding(input=[1, 2, 3], truncate_prompt_tokens=-1)
    vllm.embedding(messages=[{"role": "user", "content": "Hi"}])
    ranking: Rerank = vllm.rerank(query="q", documents=["a", {"text": "b"}])
    score: float = ranking.results[0].relevance_score
    spoken: Transcription = vllm.transcription(file=b"RIFF")
    vllm.transcription(file=("a.wav", b"RIFF", "audio/wav"), timestamp_granularities=["word"])
    models: ModelList = vllm.list_models(timeout=2)
    length: Optional[int] = models.data[0].max_model_len
    response: Response = vllm.responses(input=[{"role": "user", "content": "x"}], reasoning={"effort": "low"})
    text: str = response.output_text
    print(first, score, spoken.text, length, text)


def errors() -> None:
    try:
        chat()
    except APIStatusError as error:
        status: Optional[int] = error.status_code
        print(status)
    except IncompleteStreamError as error:
        print(error.partial)
    except BridgeError as error:
        message: str = error.message
        print(message)


def refused() -> None:
    vllm.speech(input="x")
    print("checked after it all the same")


def record(anything: Record) -> None:
    print(anything.whatever.the_server["sends"])


def what_comes_tomorrow() -> None:
    record(vllm.chat_completion(messages=[]))
