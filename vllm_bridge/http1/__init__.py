"""HTTP/1.1 as such (RFC 9110, RFC 9112): heads, bodies, chunks, codings, multipart, limits, pooled connections.

It knows neither vLLM nor requests. Sockets and clocks are in `wait`, `limits`, `tls`, `connection` and `pool`; the rest
takes bytes and returns them.
"""
