"""vLLM servers from synchronous Python, with requests as the one dependency.

>>> from vllm_bridge import VLLMProvider
>>> vllm = VLLMProvider("http://localhost:8000")
"""

import logging

from .caller import Trace
from .config import Key, NetworkConfig, ProviderConfig, ProxyConfig
from .errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BridgeError,
    ConfigError,
    IncompleteStreamError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestCancelledError,
    ResponseDecodeError,
    UnprocessableEntityError,
    UnsupportedOperationError,
)
from .provider import BaseOpenAIProvider
from .records import Record
from .reply import Cancellation
from .stream import Stream
from .version import __version__
from .vllm import VLLMProvider

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "BaseOpenAIProvider",
    "BridgeError",
    "Cancellation",
    "ConfigError",
    "IncompleteStreamError",
    "InternalServerError",
    "Key",
    "NetworkConfig",
    "NotFoundError",
    "PermissionDeniedError",
    "ProviderConfig",
    "ProxyConfig",
    "RateLimitError",
    "Record",
    "RequestCancelledError",
    "ResponseDecodeError",
    "Stream",
    "Trace",
    "UnprocessableEntityError",
    "UnsupportedOperationError",
    "VLLMProvider",
    "__version__",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
