"""What ``help()`` and completion show: every field that is documented, in the signature and in the text."""

import doctest
import inspect
import io
import pydoc
import re
import typing
import wave

import pytest

from vllm_bridge import VLLMProvider
from vllm_bridge.api import parameters
from vllm_bridge.echo import EchoServer
from vllm_bridge.operations.described import fields_of

OPERATIONS = sorted(name for name, value in inspect.getmembers(VLLMProvider) if hasattr(value, "__wrapped__"))
# Fields of vLLM's request models (the OpenAPI description of vLLM 0.32.0), and OpenAI's beside them: a few of each.
SOME = {
    "chat_completion": "messages model temperature top_k tools chat_template_kwargs structured_outputs seed metadata",
    "text_completion": "prompt model suffix best_of prompt_logprobs stop_token_ids",
    "responses": "input instructions previous_response_id text reasoning top_k",
    "embedding": "input messages dimensions encoding_format embed_dtype truncate_prompt_tokens",
    "rerank": "query documents top_n return_documents instruction",
    "transcription": "file language hotwords timestamp_granularities temperature vllm_xargs",
    "list_models": "timeout extra_headers extra_query",
    "chat_completion_batch": "messages model response_format top_k structured_outputs include_reasoning",
    "messages": "messages max_tokens system tools tool_choice thinking stop_sequences chat_template_kwargs vllm_xargs",
    "count_tokens": "messages model system tools",
    "tokenize": "prompt messages add_special_tokens return_token_strs tools add_generation_prompt",
    "detokenize": "tokens model",
    "tokenizer_info": "model",
    "score": "text_1 text_2 queries documents items use_activation instruction max_tokens_per_doc",
    "classify": "input messages use_activation truncate_prompt_tokens",
    "pooling": "input messages task dimensions encoding_format embed_dtype",
    "embed": "texts images inputs input_type output_dimension embedding_types truncate",
    "decision": "state questions instructions images cache_salt",
    "generative_scoring": "query items label_token_ids apply_softmax item_first",
    "translation": "file language to_language hotwords response_format temperature",
}


def test_every_operation_that_there_is_is_described():
    assert {name + suffix for name in SOME for suffix in ("", "_stream")} >= set(OPERATIONS) >= set(SOME)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_signature_has_every_field(name):
    signature = inspect.signature(getattr(VLLMProvider, name))
    shape = typing.get_type_hints(getattr(parameters, _annotation(name)))
    named = {each.name for each in signature.parameters.values() if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert named == set(shape) == set(fields_of(getattr(VLLMProvider, name)))
    assert named >= set(SOME[name.replace("_stream", "")].split())
    assert list(signature.parameters)[-1] == "wire"  # what a server takes beside them
    bound = inspect.signature(getattr(VLLMProvider("http://gpu"), name))
    assert list(bound.parameters) == list(signature.parameters)[1:]
    assert signature.return_annotation is typing.get_type_hints(getattr(VLLMProvider, name))["return"]


def _annotation(name):
    source = inspect.getsource(getattr(VLLMProvider, name))
    return re.search(r"Unpack\[(\w+)\]", source).group(1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_docstring_names_every_field_and_no_other(name):
    operation = getattr(VLLMProvider, name)
    text = inspect.getdoc(operation)
    fields = set(fields_of(operation))
    assert fields <= set(re.findall(r"``(\w+)``", text))
    first, _, rest = text.partition("\n")
    assert len(first) < 110 and first.endswith(".")
    assert "Raises `APIConnectionError`" in rest and ">>> " in rest
    assert max(map(len, text.splitlines())) <= 116
    shown = pydoc.render_doc(operation, renderer=pydoc.plaintext).rstrip().splitlines()
    assert text.splitlines() == [line[4:] for line in shown][-len(text.splitlines()):]


def wav():
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16000)
        writer.writeframes(bytes(32000))
    return file.getvalue()


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_example_of_an_operation_runs(name):
    with EchoServer() as server, VLLMProvider(server.url) as vllm:
        text = inspect.getdoc(getattr(VLLMProvider, name))
        example = doctest.DocTestParser().get_doctest(text, {"vllm": vllm, "wav": wav()}, name, None, None)
        assert example.examples
        shown = io.StringIO()
        assert doctest.DocTestRunner().run(example, out=shown.write).failed == 0, shown.getvalue()
