"""Who a request says it is from, beside a key that stays the same: what requests calls auth, and keys that expire."""

from typing import Any, Callable, Optional, Tuple, Union

from ..config.validate import header_text
from ..errors import ConfigError

__all__ = ["Auth", "Bearer", "checked"]

# As in requests: (user, password), or what changes a request that is prepared, and returns it.
Auth = Union[None, Tuple[str, str], Callable[[Any], Any]]


def checked(auth: Auth) -> Auth:
    """Return what was given as auth, or raise `ConfigError`."""
    pair = isinstance(auth, tuple) and len(auth) == 2 and all(isinstance(each, str) for each in auth)
    if auth is not None and not pair and not callable(auth):  # whatever its type was said to be
        raise ConfigError("auth: expected (user, password) or something callable, got %s" % type(auth).__name__)
    return auth


class Bearer:
    """Asks for the key before each attempt."""

    def __init__(self, key: Callable[[], Optional[str]]) -> None:
        self._key = key

    def __call__(self, request: Any) -> Any:
        key = self._key()
        if key is not None and not isinstance(key, str):
            raise ConfigError("api_key: what was called gave no string, but %s" % type(key).__name__)
        if key:
            request.headers["Authorization"] = "Bearer %s" % header_text(key, "api_key")
        return request
