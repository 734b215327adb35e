"""Requests as bytes, and those that a server has to refuse."""


def get(path: str = "/", lines: str = "", method: str = "GET", version: str = "1.1") -> bytes:
    return ("%s %s HTTP/%s\r\nHost: a\r\n%s\r\n" % (method, path, version, lines)).encode("latin-1")


def post(body: bytes, lines: str = "", path: str = "/") -> bytes:
    return get(path, "Content-Length: %d\r\n%s" % (len(body), lines), "POST") + body


def chunked(*chunks: bytes, lines: str = "") -> bytes:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return get("/", "Transfer-Encoding: chunked\r\n" + lines, "POST") + wire + b"0\r\n\r\n"


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
HOSTILE = [
    ("two lengths", get(lines="Content-Length: 0\r\nContent-Length: 38\r\n", method="POST") + SMUGGLED, 400),
    ("length and chunked", get(lines="Content-Length: 38\r\nTransfer-Encoding: chunked\r\n", method="POST")
     + SMUGGLED, 400),
    ("chunked in disguise", get(lines="Transfer-Encoding: xchunked\r\n", method="POST") + SMUGGLED, 400),
    ("another coding", get(lines="Transfer-Encoding: gzip, chunked\r\n", method="POST") + SMUGGLED, 501),
    ("obs-fold", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n Content-Length: 38\r\n\r\n" + SMUGGLED, 400),
    ("bare LF", b"GET / HTTP/1.1\nHost: a\n\n" + SMUGGLED, 400),
    ("bare LF in a header", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\nContent-Length: 38\r\n\r\n" + SMUGGLED, 400),
    ("bare CR", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rContent-Length: 38\r\n\r\n" + SMUGGLED, 400),
    ("space before the colon", get(lines="Content-Length : 38\r\n", method="POST") + SMUGGLED, 400),
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", get(lines="Host: b\r\n"), 400),
    ("long chunk extensions", get(lines="Transfer-Encoding: chunked\r\n", method="POST")
     + b"2;" + b"x" * 300 + b"\r\nhi\r\n0\r\n\r\n", 400),
    ("LF in a chunk extension", get(lines="Transfer-Encoding: chunked\r\n", method="POST")
     + b"2;\nxx\r\nhi\r\n0\r\n\r\n" + SMUGGLED, 400),
    ("a signed chunk size", get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"+2\r\nhi\r\n0\r\n\r\n", 400),
    ("a chunk size in C", get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"0x2\r\nhi\r\n0\r\n\r\n", 400),
    ("a giant chunk size", get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"f" * 17 + b"\r\nhi", 400),
    ("a short chunk", get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"2\r\nhi!\r\n0\r\n\r\n", 400),
    ("giant line", b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    ("giant line without end", b"G" * 9000, 414),
    ("giant header", get(lines="X: " + "y" * 70000 + "\r\n"), 431),
    ("many headers", get(lines="X: y\r\n" * 200), 431),
    ("endless headers", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 12000, 431),
    ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), 400),
    ("bytes", b"\x00\xff\x00\xff", 400),
    ("JSON", b'{"model": "x"}\n', 400),
    ("HTTP/0.9", b"GET /\r\n", 400),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("CONNECT", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501),
    ("another Expect", get(lines="Expect: tea\r\n"), 417),
]
