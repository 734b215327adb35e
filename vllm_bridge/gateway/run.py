"""Running the gateway: the banner, the server, its worker processes."""

import logging
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Optional, TextIO

from ..config.redaction import one_line, shortened
from ..errors import BridgeError, ConfigError
from ..provider import BaseOpenAIProvider
from ..server import workers
from ..server.addresses import Listener, listen
from ..server.listener import Server
from ..version import __version__
from . import access_log
from .app import Gateway
from .settings import SETTINGS, Settings, read

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["main", "serve"]

_ANSWER_WITHIN = 3.0  # seconds that a server has to name its models for the banner
_MODELS_SHOWN = 5
_LONGEST_NAME = 200
_SERVERS_SHOWN = 10
_LAST_JOIN = 0.5  # seconds at the end for servers that have not named theirs
# What only a new start can change: the socket, the processes, the places in them, the log, the time they get to end.
_FIXED = ("host", "port", "workers", "max_connections", "log_format", "graceful_timeout")
_OF_SERVER = ("keep_alive_timeout", "header_timeout", "body_timeout", "write_timeout")

logger = logging.getLogger("vllm_bridge.gateway")


def main(namespace: "Namespace") -> int:
    """Run the gateway until it is told to stop; return the exit code, 2 for wrong settings."""
    flags = {setting.name: getattr(namespace, setting.name, None) for setting in SETTINGS}
    package = logging.getLogger("vllm_bridge")
    early = logging.StreamHandler()  # on standard error: the log is set up by the settings
    early.setFormatter(logging.Formatter("vllm-bridge: %(message)s"))
    package.addHandler(early)
    try:
        settings = read(flags)
        settings.check_address()
        if getattr(namespace, "check_config", False):
            Gateway(settings).close()
            print("the configuration is good: %s" % _summary(settings))
            return 0
    except ConfigError as error:
        package.error("%s", error.message)
        return 2
    finally:
        package.removeHandler(early)
    return serve(settings, again=lambda: read(flags))


def serve(
    settings: Settings,
    out: Optional[TextIO] = None,
    errors: Optional[TextIO] = None,
    again: Optional[Callable[[], Settings]] = None,
) -> int:
    """Run the gateway until SIGTERM or Ctrl-C and return the exit code; call it in the main thread.

    The banner and the access log go to `out`, everything else to `errors`. On SIGHUP `again` gives the settings by
    which further requests are served. Raises `ConfigError`.
    """
    settings.check_address()
    errors = sys.stderr if errors is None else errors
    lines = access_log.set_up(settings.log_format, sys.stdout if out is None else out, errors)
    try:
        sock = listen(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or error
        print("vllm-bridge: cannot listen on %s:%d: %s" % (settings.host, settings.port, reason), file=errors)
        return 1
    current = _Current(Gateway(settings), again)
    if settings.workers > 1:
        current.gateway.provider.share()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))  # until somebody listens to it
    banner = _Banner(settings, current.gateway.provider, sock, lines)

    def make_server(listener: Listener, index: int) -> Server:
        gateway = current.gateway
        gateway.journal.claim(index)
        gateway.begin()
        if index == 0:
            banner.show_servers()
        return _Server(
            gateway,
            sock=listener,
            max_connections=settings.max_connections,
            graceful_timeout=settings.graceful_timeout,
            multiprocess=settings.workers > 1,
            **{name: getattr(gateway.settings, name) for name in _OF_SERVER},
        )

    try:
        banner.show_address()
        return workers.run(
            make_server,
            sock,
            settings.workers,
            graceful_timeout=settings.graceful_timeout,
            worker_started=banner.worker_started,
            reload=current.reload,
        )
    finally:
        banner.close()
        current.gateway.close()


class _Server(Server):
    """A server whose process does not end before the journal has told all."""

    def server_close(self) -> None:
        super().server_close()
        self.application.journal.write_out()  # type: ignore[attr-defined]


class _Current:
    """The gateway that new requests meet; those that run keep the one that they began with."""

    def __init__(self, gateway: Gateway, again: Optional[Callable[[], Settings]]) -> None:
        self.gateway = gateway
        self._again = again

    def reload(self, server: Optional[Server]) -> bool:
        """Read the settings again and serve by them; leave all as it is where they are wrong, and say so.

        In the parent of workers, which has no server, it is done for those that will be started.
        """
        if self._again is None:
            return False
        before = self.gateway
        try:
            settings = self._again()
            fixed = [name for name in _FIXED if getattr(settings, name) != getattr(before.settings, name)]
            for name in fixed:
                setattr(settings, name, getattr(before.settings, name))
            settings.check_address()
            self.gateway = before.succeeded_by(settings)
        except ConfigError as error:
            logger.error("the configuration stays as it was: %s", error.message)
            return False
        except Exception:
            logger.error("the configuration stays as it was", exc_info=True)
            return False
        if server is not None:
            for name in _OF_SERVER:
                setattr(server, name, getattr(settings, name))
            server.application = self.gateway
            self.gateway.begin()
        if server is None or settings.workers == 1:
            if fixed:
                logger.warning("needs a new start to change: %s", ", ".join(fixed))
            logger.info("the configuration was read again: %s", _summary(settings))
        return True


def _summary(settings: Settings) -> str:
    keys = [key for key in settings.provider.resolved_keys() if key.enabled]
    urls = list(dict.fromkeys(str(key.url) for key in keys))
    more = ", and %d more" % (len(urls) - _SERVERS_SHOWN) if len(urls) > _SERVERS_SHOWN else ""
    return "servers: %s%s; keys for clients: %d" % (", ".join(urls[:_SERVERS_SHOWN]), more, len(settings.api_keys))


class _Banner:
    """Says where the gateway is, and which servers and models stand behind it; asking them holds nothing up."""

    def __init__(
        self, settings: Settings, provider: BaseOpenAIProvider, sock: Listener, out: access_log.Output
    ) -> None:
        self._settings = settings
        self._provider = provider
        self._urls = ["http://%s:%d" % ("[%s]" % name[0] if ":" in name[0] else name[0], name[1])
                      for name in [each.getsockname() for each in sock.sockets]]
        self._out = out
        self._json = settings.log_format == "json"
        self._shown = False
        self._thread: Optional[threading.Thread] = None

    def show_address(self) -> None:
        """Print the addresses."""
        url = self._urls[0]
        if self._json:
            self._print_json({"message": "listening", "url": url, "urls": self._urls, "version": __version__})
            return
        self._out.write("vllm-bridge %s listens on %s (base_url for OpenAI clients: %s/v1)\n" % (
            __version__, " and ".join(self._urls), url))
        if self._settings.insecure and not self._settings.api_keys:
            self._out.write("  without an API key: everybody who reaches this address can use it\n")

    def worker_started(self, index: int, pid: int) -> None:
        """Remember in the parent that the first worker shows the servers; its successor need not."""
        self._shown = True

    def show_servers(self) -> None:
        """Ask the servers for their models from a thread, and print them."""
        if not self._shown:
            self._thread = threading.Thread(target=self._ask, daemon=True, name="vllm-bridge-banner")
            self._thread.start()

    def close(self) -> None:
        """Wait for the thread a moment."""
        if self._thread is not None:
            self._thread.join(_LAST_JOIN)

    def _ask(self) -> None:
        for state in self._provider.with_options(deadline=_ANSWER_WITHIN).server_states():
            key = state["key"]
            label = "%s (%s)" % (key.url, key.name) if key.name else str(key.url)
            models = self._models(state["models"] or (), state["error"])
            if self._json:
                self._print_json({"message": "server", "url": key.url, "name": key.name, "models": models})
            else:
                self._out.write(one_line("  %s  %s" % (label, models)) + "\n")

    @staticmethod
    def _models(models: Iterable[Dict[str, Any]], error: Optional[BridgeError]) -> str:
        if error is not None:
            return "does not answer yet: %s" % error.message
        names = [shortened(str(model.get("id")), _LONGEST_NAME) for model in models]
        more = ", and %d more" % (len(names) - _MODELS_SHOWN) if len(names) > _MODELS_SHOWN else ""
        return ", ".join(names[:_MODELS_SHOWN]) + more

    def _print_json(self, entry: Dict[str, Any]) -> None:
        import json

        self._out.write(json.dumps(entry) + "\n")
