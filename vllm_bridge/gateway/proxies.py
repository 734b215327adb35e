"""The proxies in front of the gateway, whose word counts for where a request comes from."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Iterable, List, Optional, Union

__all__ = ["Proxies", "networks"]

_Address = Union[IPv4Address, IPv6Address]


def networks(text: str) -> List[str]:
    """Return the addresses and networks of a comma-separated list, or ``*`` for all; raises ValueError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [name if name == "*" else str(ip_network(name, strict=False)) for name in names]


class Proxies:
    """Those whose ``X-Forwarded-For`` is believed, by lists as gunicorn and uvicorn take them."""

    def __init__(self, allowed: Iterable[str]) -> None:
        names = [name for text in allowed for name in networks(text)]
        self._all = "*" in names
        self._networks = [ip_network(name) for name in names if name != "*"]

    def client(self, peer: str, forwarded: str) -> str:
        """Return who a request is from: the last address in the list that no trusted proxy has.

        Each proxy appends whom it was asked by. What stands before something that is no address is not believed.
        """
        found = peer
        address = _address(peer)
        for name in reversed(forwarded.split(",")):
            if not self._all and not (address is not None and any(address in network for network in self._networks)):
                break
            address = _address(name)
            if address is None:
                break
            found = str(address)
        return found


def _address(text: str) -> Optional[_Address]:
    """Return the address in an entry, which may have a port: ``1.2.3.4:80``, ``[2001:db8::1]:80``."""
    text = text.strip(' \t"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
