"""vLLM servers from synchronous Python, with requests as the one dependency.

>>> from vllm_bridge import VLLMProvider
>>> vllm = VLLMProvider("http://localhost:8000")
"""

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

from .client.log import to_standard_error
from .client.options import Trace
from .config.settings import Key, NetworkConfig, ProviderConfig, ProxyConfig
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
from .api.content import audio, image
from .api.records import Record
from .client.cancellation import Cancellation
from .client.stream import Stream
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
    "audio",
    "image",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
if os.environ.get("VLLM_BRIDGE_LOG"):
    to_standard_error(os.environ["VLLM_BRIDGE_LOG"])

if not TYPE_CHECKING:  # a type checker would take every name for one that is there

    def __getattr__(name: str) -> Any:
        """Load ``vllm_bridge.batch`` where it is used first."""
        if name == "batch":
            return importlib.import_module(__name__ + ".batch")
        raise AttributeError("module %r has no attribute %r" % (__name__, name))
