"""HTTP/1.1 as such (RFC 9110, RFC 9112): heads, bodies, chunks, multipart, limits, pooled connections.

It knows neither vLLM nor requests, and apart from `pool` it takes bytes and returns them.
"""
