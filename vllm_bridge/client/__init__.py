"""One call carried out: which server, which attempt, the connection, the reply, the stream."""
