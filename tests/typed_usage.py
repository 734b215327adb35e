"""What a caller's own mypy --strict sees: run through mypy by test_records.py, never executed.

Each ``type: ignore[...]`` is an assertion too: under --strict an ignore that is not needed is an error.
"""

from typing import List, Optional, Union

from vllm_bridge import APIStatusError, BridgeError, IncompleteStreamError, Record, Stream, VLLMProvider
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


def chat() -> None:
    reply: ChatCompletion = vllm.chat_completion(model="m", messages=[{"role": "user", "content": "Hi"}], top_k=20)
    text: str = reply.text
    message: ChatMessage = reply.choices[0].message
    content: Optional[str] = message.content
    plain: str = message.content  # type: ignore[assignment]
    reasoning: Optional[str] = message.reasoning
    calls: Optional[List[ToolCall]] = message.tool_calls
    for call in message.tool_calls or ():
        name: str = call.function.name
        wrong: Optional[str] = call.arguments_error
        print(name, wrong)
    reply.usage.total_tokens  # type: ignore[union-attr]
    if reply.usage is not None:
        tokens: int = reply.usage.total_tokens
        print(tokens)
    number: int = reply.choices[0].finish_reason  # type: ignore[assignment]
    reason: Union[str, int, None] = reply.choices[0].stop_reason
    print(text, content, plain, reasoning, calls, number, reason, reply["choices"], reply.copy().id)


def streams() -> None:
    with vllm.chat_completion_stream(model="m", messages=[]) as stream:
        of_chunks: Stream[ChatCompletionChunk] = stream
        for chunk in stream:
            delta: Optional[str] = chunk.choices[0].delta.content
            print(chunk.text, delta)
        of_chunks.close()
    for part in vllm.text_completion_stream(prompt="x"):
        completion: Completion = part
        piece: str = completion.choices[0].text
        print(piece)
    for event in vllm.transcription_stream(file="a.wav"):
        spoken: TranscriptionEvent = event
        words: Optional[str] = spoken.delta
        print(words)
    for told in vllm.responses_stream(input="x"):
        response_event: ResponseEvent = told
        print(response_event.sequence_number)


def others() -> None:
    vectors: EmbeddingList = vllm.embedding(input=["a"])
    first: List[float] = vectors.data[0].embedding
    ranking: Rerank = vllm.rerank(query="q", documents=["a", {"text": "b"}])
    score: float = ranking.results[0].relevance_score
    spoken: Transcription = vllm.transcription(file=b"RIFF")
    models: ModelList = vllm.list_models()
    length: Optional[int] = models.data[0].max_model_len
    response: Response = vllm.responses(input="x")
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


def refused() -> int:
    vllm.speech(input="x")
    return "checked after it all the same"  # type: ignore[return-value]


def record(anything: Record) -> None:
    print(anything.whatever.the_server["sends"])
