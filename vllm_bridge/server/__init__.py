"""An HTTP/1.1 server for any application, and the processes it runs in."""
