"""What the bytes mean: the API of vLLM, operation by operation, from and to bytes and dicts.

No sockets, clocks or threads in here.
"""
