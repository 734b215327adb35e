"""An HTTP/1.1 server for any application, and the processes it runs in.

`request` says what server and application tell each other; `addresses` is where it listens, `listener` accepts,
`connection` reads requests and sends answers, `workers` are the processes, and `wsgi` is the same application under
other servers.
"""
