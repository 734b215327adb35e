"""Write the reference of vllm_bridge/README.md anew, from the docstrings: python3 scripts/reference.py."""

import inspect
import re
import sys
from pathlib import Path
from typing import Any, Iterator, List, Tuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "vllm_bridge" / "README.md"
HEADING = "## Reference\n"
GATEWAYS = {"changes", "cooling", "for_request", "forward", "forward_stream", "server_states", "succeed", "tidy"}


def names() -> Iterator[Tuple[str, Any]]:
    """Yield what the reference lists: the provider, its operations, then what else is public but for errors."""
    import vllm_bridge
    from vllm_bridge.operations.unsupported import Unsupported

    provider = vllm_bridge.VLLMProvider
    left_out = set(vars(Unsupported)) | GATEWAYS
    yield "VLLMProvider", provider.__init__
    for name in dir(provider):
        if not name.startswith("_") and name not in left_out and callable(getattr(provider, name)):
            yield "VLLMProvider.%s" % name, getattr(provider, name)
    for name in vllm_bridge.__all__:
        value = getattr(vllm_bridge, name)
        is_error = isinstance(value, type) and issubclass(value, Exception)
        if not (name.startswith("_") or is_error or name in ("VLLMProvider", "BaseOpenAIProvider")):
            yield name, value


def as_markdown(text: str) -> List[str]:
    """Return the lines of a docstring: its examples as blocks, everything else as it stands."""
    lines: List[str] = []
    for part in re.split(r"\n{2,}", inspect.cleandoc(text)):
        example = part.lstrip().startswith(">>>")
        lines += ["```text", part, "```", ""] if example else [part, ""]
    return lines


def reference() -> str:
    """Return the reference."""
    lines = [HEADING, "Made of the docstrings by `scripts/reference.py`; `help()` shows the same, with signatures.", ""]
    for name, value in names():
        if value.__doc__:
            lines += ["### `%s`" % name, ""] + as_markdown(value.__doc__)
    return "\n".join(lines).rstrip("\n") + "\n"


def renewed(page: str) -> str:
    """Return a page with the reference, which is its last part, as it is now."""
    return page.partition("\n" + HEADING)[0].rstrip("\n") + "\n\n" + reference()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
