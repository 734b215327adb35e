"""The reference of vllm_bridge/README.md says what the docstrings say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("reference", str(ROOT / "scripts" / "reference.py"))
assert SPEC is not None and SPEC.loader is not None
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


def test_it_is_current():
    page = reference.PAGE.read_text(encoding="utf-8")
    assert reference.renewed(page) == page, "run: python3 scripts/reference.py"


def test_it_has_every_operation():
    page = reference.PAGE.read_text(encoding="utf-8")
    for name in ("chat_completion", "responses_stream", "rerank", "transcription_stream", "list_models"):
        assert "\n### `VLLMProvider.%s`\n" % name in page


def test_examples_become_blocks():
    lines = reference.as_markdown("First.\n\n    >>> 1 + 1\n    2\n\n    Last: ``x``.\n    ")
    assert lines == ["First.", "", "```text", ">>> 1 + 1\n2", "```", "", "Last: ``x``.", ""]
