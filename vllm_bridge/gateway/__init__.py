"""The gateway: one local OpenAI-compatible address in front of vLLM servers.

``gunicorn 'vllm_bridge.gateway:create_app()'`` and any other WSGI server run it as ``vllm-bridge serve`` does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import Gateway, create_app

__all__ = ["Gateway", "create_app"]


def __getattr__(name: str) -> Any:
    # The server beside them is used without the application, and the command line reads its flags without either.
    if name in __all__:
        from . import app

        return getattr(app, name)
    raise AttributeError("module %r has no attribute %r" % (__name__, name))
