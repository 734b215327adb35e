"""An application behind WSGI (PEP 3333): what it is told of a call, and what the server gets of its answer."""

import io
import json
import wsgiref.validate
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from serving import TEXT, App
from vllm_bridge.errors import RequestCancelledError
from vllm_bridge.server.request import Answer, Request
from vllm_bridge.server.wsgi import respond


def environ(body: bytes = b"", **more: Any) -> Dict[str, Any]:
    found: Dict[str, Any] = {
        "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/a b/\xc3\xa9", "QUERY_STRING": "q=%20",
        "SERVER_NAME": "a", "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "10.0.0.1", "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": str(len(body)), "HTTP_X_A": "1", "wsgi.version": (1, 0), "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body), "wsgi.errors": io.StringIO(), "wsgi.multithread": True,
        "wsgi.multiprocess": False, "wsgi.run_once": False,
    }
    found.update(more)
    return {name: value for name, value in found.items() if value is not None}


def called(app: App, given: Dict[str, Any]) -> Tuple[str, Dict[str, str], bytes]:
    started: List[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.append((status, dict(headers)))
        return lambda data: None

    result = wsgiref.validate.validator(lambda env, start: respond(app, env, start))(given, start_response)
    body = b"".join(result)
    assert not app.ends
    result.close()  # type: ignore[attr-defined]
    assert len(app.ends) == 1
    return started[0][0], started[0][1], body


def test_a_call_becomes_a_request() -> None:
    app = App()
    status, headers, body = called(app, environ(b"hi"))
    assert (status, headers["Content-Length"]) == ("200 OK", str(len(body)))
    assert json.loads(body) == {
        "method": "POST", "path": "/a b/é", "query": "q=%20", "body": "hi",
        "fields": {"x-a": "1", "content-type": "text/x", "content-length": "2"},
    }
    request = app.ends[0][0]
    assert (request.target, request.client, request.version) == ("/a%20b/%C3%A9?q=%20", "10.0.0.1", "HTTP/1.1")
    assert request.gone is None and not request.stopping()


@pytest.mark.parametrize("name", ["gunicorn.socket", "waitress.client_disconnected"])
def test_who_can_tell_of_the_clients_leaving_is_handed_on(name: str) -> None:
    def left() -> bool:
        return False

    app = App()
    called(app, environ(**{name: left}))
    assert app.ends[0][0].gone is left


def test_an_answer_block_by_block() -> None:
    def blocks() -> Iterator[bytes]:
        yield b"one"
        yield b"two"

    app = App(lambda request: Answer(499, TEXT, blocks()))
    status, headers, body = called(app, environ())
    assert (status[:4], body, "Content-Length" in headers) == ("499 ", b"onetwo", False)
    assert app.statuses() == [(499, True)]


def test_an_answer_that_is_left_is_closed_and_not_complete() -> None:
    closed = []

    class Blocks:
        def __iter__(self) -> Iterator[bytes]:
            yield b"one"
            raise AssertionError("it was closed")

        def close(self) -> None:
            closed.append(True)

    app = App(lambda request: Answer(200, TEXT, Blocks()))
    result: Any = respond(app, environ(), lambda status, headers: None)
    assert next(iter(result)) == b"one"
    result.close()
    assert closed == [True] and app.statuses() == [(200, False)]


def test_head_and_204_have_no_body() -> None:
    app = App(lambda request: Answer(200 if request.method == "HEAD" else 204, TEXT * (request.method == "HEAD"), b"1"))
    assert called(app, environ(REQUEST_METHOD="HEAD"))[2] == b""
    assert app.ends.pop()[1].status == 200
    assert "Content-Length" not in called(app, environ(REQUEST_METHOD="DELETE"))[1]


def limited(request: Request) -> Answer:
    return Answer(200, TEXT, b"%d" % len(request.body.read(5)))


@pytest.mark.parametrize("body, more, status", [
    (b"hello", {}, "200"), (b"hello!", {}, "413"), (b"", {}, "200"),
    (b"hell", {"CONTENT_LENGTH": "5"}, "400"), (b"hello", {"CONTENT_LENGTH": "5_"}, "400"),
    (b"hello", {"CONTENT_LENGTH": "9" * 30}, "400"),
    (b"hello", {"CONTENT_LENGTH": None, "wsgi.input_terminated": True}, "200"),
    (b"hello!", {"CONTENT_LENGTH": None, "wsgi.input_terminated": True}, "413"),
    (b"what nobody can tell the end of", {"CONTENT_LENGTH": None}, "200"),
])
def test_a_body_is_read_to_its_end_and_not_beyond_the_limit(body: bytes, more: Any, status: str) -> None:
    if str(more.get("CONTENT_LENGTH", "0")).isdigit() or more["CONTENT_LENGTH"] is None:
        assert called(App(limited), environ(body, **more))[0].startswith(status)
    else:  # the validator would not let it pass
        started: List[str] = []
        respond(App(limited), environ(body, **more), lambda *args: started.append(args[0]))
        assert started[0].startswith(status)


def test_a_client_that_leaves_inside_its_body() -> None:
    class Broken(io.BytesIO):
        def read(self, size: Any = -1) -> bytes:
            raise ConnectionResetError

    def answer(request: Request) -> Answer:
        with pytest.raises(RequestCancelledError):
            request.body.read(100)
        return Answer(499)

    app = App(answer)
    result: Any = respond(app, environ(b"hello", **{"wsgi.input": Broken()}), lambda *args: None)
    result.close()
    assert [status for status, _ in app.statuses()] == [499]


def test_a_server_that_takes_no_head() -> None:
    def start_response(status: str, headers: Any) -> None:
        raise ConnectionResetError

    app = App()
    with pytest.raises(ConnectionResetError):
        respond(app, environ(b"hello"), start_response)
    assert app.statuses() == [(200, False)]


def test_an_answer_ends_once() -> None:
    app = App()
    result: Any = respond(app, environ(SERVER_PROTOCOL=None, REMOTE_ADDR=None), lambda *args: None)
    result.close()
    result.close()
    assert len(app.ends) == 1 and app.ends[0][0].client == ""
