"""The project's benchmark: what users would pick instead, measured in the same rounds.

``upstream`` is the fake vLLM and ``load`` the load client, each a process of its own; ``clients`` measures one client
of the library's kind in one process; ``library``, ``gateways`` and ``imports`` run the rounds; ``peers`` installs what
is measured beside the project; ``comparisons`` holds what is compared as data and ``report`` prints them.
"""
