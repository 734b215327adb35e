"""What a caller's type checker has to see: every line that ends in "mistake", and no other. Never executed."""

from vllm_bridge import NetworkConfig, VLLMProvider

vllm = VLLMProvider("http://localhost:8000")
ASK = "Hi"


def operations() -> None:
    vllm.chat_completion(mesages=[], modle="x")  # mistake
    vllm.chat_completion(model="m", messages=[], temprature=0.5)  # mistake
    vllm.chat_completion(model="m", messages=[], temperature="hot")  # mistake
    vllm.chat_completion(model="m", messages=[], max_tokens=[9])  # mistake
    vllm.chat_completion(model="m", messages=[], stream=True)  # mistake
    vllm.chat_completion(model="m")  # mistake
    vllm.chat_completion(model="m", messages="Hi")  # mistake
    vllm.chat_completion(model="m", messages=[], reasoning_effort="much")  # mistake
    vllm.chat_completion(model="m", messages=[], response_format=5)  # mistake
    vllm.chat_completion_stream(model="m", messages=[], top_k="20")  # mistake
    vllm.text_completion(model="m", prompt=5)  # mistake
    vllm.text_completion_stream(prompts="Hi")  # mistake
    vllm.responses(model="m", inputs="Hi")  # mistake
    vllm.responses_stream(model="m", input="Hi", max_tokens=9)  # mistake
    vllm.embedding(model="m", inputs=["a"])  # mistake
    vllm.embedding(model="m", input=["a"], encoding_format="base65")  # mistake
    vllm.rerank(model="m", query="a")  # mistake
    vllm.rerank(model="m", query="a", documents=["b"], top_n="all")  # mistake
    vllm.transcription(model="m", files="a.wav")  # mistake
    vllm.transcription(model="m", file=5)  # mistake
    vllm.transcription_stream(model="m", file="a.wav", response_format="xml")  # mistake
    vllm.score(text1="a", text_2="b")  # mistake
    vllm.tokenize(prompt=5)  # mistake
    vllm.messages(model="m", messages=[], max_tokens="9")  # mistake
    vllm.messages_stream(model="m", messages=[])  # mistake
    vllm.list_models(limit=3)  # mistake
    vllm.chat_completon(model="m", messages=[])  # mistake


def messages() -> None:
    vllm.chat_completion(messages=[{"role": "user", "contnet": "Hi"}])  # mistake
    vllm.chat_completion(messages=[{"role": "usr", "content": "Hi"}])  # mistake
    vllm.chat_completion(messages=[{"content": "Hi"}])  # mistake
    vllm.chat_completion(messages=[{"role": "user", "content": [{"typ": "text", "text": "Hi"}]}])  # mistake
    vllm.chat_completion(messages=[], tools=[{"type": "function", "functoin": {"name": "f"}}])  # mistake
    vllm.chat_completion(messages=[], tools=[{"type": "function", "function": {"parameters": {}}}])  # mistake
    vllm.chat_completion(messages=[], tool_choice="always")  # mistake


def settings() -> None:
    vllm.with_options(tiemout=3)  # mistake
    vllm.with_options(timeout="3")  # mistake
    vllm.with_options(max_retries="three")  # mistake
    vllm.chat_completion(messages=[], timeout="soon")  # mistake
    vllm.chat_completion(messages=[], extra_headers=["a"])  # mistake
    vllm.chat_completion(messages=[], headers={"a": "b"})  # mistake
    VLLMProvider(api_kye="k")  # mistake
    VLLMProvider(timeout="5")  # mistake
    VLLMProvider(api_key=5)  # mistake
    NetworkConfig(base_ulr="http://gpu")  # mistake


def replies() -> None:
    reply = vllm.chat_completion(messages=[])
    print(reply.chocies)  # mistake
    print(reply.choices[0].mesage)  # mistake
    print(reply.choices[0].message.contents)  # mistake
    print(reply.choices[0].message.content.upper())  # mistake
    print(reply.usage.total_tokens)  # mistake
    print(reply.choices["0"])  # mistake
    for chunk in vllm.chat_completion_stream(messages=[]):
        print(chunk.tetx)  # mistake
        print(chunk.choices[0].message)  # mistake
    print(vllm.chat_completion_stream(messages=[]).completion().txet)  # mistake
    for event in vllm.responses_stream(input="Hi"):
        print(event.sequence)  # mistake
    vectors = vllm.embedding(input=["a"])
    print(vectors.data[0].vector)  # mistake
    print(vllm.rerank(query="a", documents=["b"]).results[0].score)  # mistake
    print(vllm.transcription(file="a.wav").txt)  # mistake
    print(vllm.score(text_1="a", text_2="b").scores)  # mistake
    print(vllm.messages(model="m", messages=[], max_tokens=9).choices)  # mistake
    print(vllm.list_models().models)  # mistake


def after_what_raises() -> int:
    vllm.speech(input=ASK)
    return ASK  # mistake
