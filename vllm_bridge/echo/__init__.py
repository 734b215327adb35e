"""A stand-in for a vLLM server: real HTTP, vLLM 0.32.0's shapes, and always the same answers.

It is what the demo talks to when there is no vLLM, and a help for tests of code that calls one:

>>> import json, urllib.request
>>> def post(url, **body):
...     head = {"Content-Type": "application/json"}
...     request = urllib.request.Request(url, json.dumps(body).encode(), head)
...     with urllib.request.urlopen(request) as response:
...         return json.load(response)
>>> with EchoServer() as server:                      # or: VLLMProvider(server.url)
...     reply = post(server.url + "/v1/chat/completions", messages=[{"role": "user", "content": "Hello"}])
>>> reply["choices"][0]["message"]["content"]
'You said: Hello'
>>> server.requests[-1].path, server.requests[-1].json["messages"][0]["content"]
('/v1/chat/completions', 'Hello')

What it answers:

- chat ``You said: ...`` to the last user message, ``The tool said: ...`` to a tool's result; completions the same;
- a tool call when ``tool_choice`` wants one, or when the message has a tool's name or a long word of it in it
  (``weather`` for ``get_weather``), with arguments made from the tool's schema;
- a value that fits the schema for ``response_format`` and ``structured_outputs`` (``choice`` and ``json``; ``regex``
  and ``grammar`` are not looked at);
- reasoning first with ``chat_template_kwargs={"enable_thinking": true}``; false always switches it off;
- embeddings that depend on the text alone, with length 1; rerank scores from words in common;
- transcriptions that name the file and its size, once for every 30 seconds of a WAV file; any bytes are accepted.

A token is a word with the space before it, in usage too. ``n`` choices differ by a number at their end. Any operation
may be called with any of the server's models, and ``models=None`` takes any name.

What goes wrong is asked for in the text: the last user message, the first prompt or input, the query, the form field
``prompt``. Directives stand at its beginning and are not part of what is answered. ``EchoServer.script(...)`` gives
them to the next requests, whatever their text.

====================== ==================================================================================
``!error S``           HTTP status S with vLLM's error body
``!retry-after N``     the error has a ``Retry-After`` of N seconds
``!error-in-200 S``    status 200, and the error S is the body or the stream's only event
``!error-after N S``   after N events the error S in the stream, then ``[DONE]``
``!die``               close the connection without an answer
``!die-after N``       close it after N events without an end; in the middle of an answer in one piece
``!cut-after N``       end the stream in order after N events, but with no finish reason and no ``[DONE]``
``!stall T``           T seconds of silence before the answer
``!stall-after N T``   T seconds of silence after N events; before the body of an answer in one piece
``!slow T``            T seconds for every token
``!comments``          a comment line before every event
``!abort``             the finish reason is ``abort``
``!empty``             nothing is generated
``!count N``           the answer is ``1 2 3 ... N``
``!think``             reasoning first
``!call N``            call the first N of the tools offered
``!broken-call``       call the first tool with arguments that are no JSON
====================== ==================================================================================

>>> with EchoServer() as server:
...     server.script("!error 503", "!count 3")
...     for _ in range(2):
...         try:
...             print(post(server.url + "/v1/completions", prompt="!slow 0.001 Hello")["choices"][0]["text"])
...         except urllib.error.HTTPError as error:
...             print(error.code, json.load(error)["error"]["type"])
...             error.close()
503 Service Unavailable
1 2 3

``python -m vllm_bridge.echo --port 8000`` runs it on its own.
"""

from .server import EchoServer, RecordedRequest

__all__ = ["EchoServer", "RecordedRequest"]
