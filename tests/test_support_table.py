"""What the README says about vLLM versions, held to the transcripts and to what scripts/live installs."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
COLUMN = "last shown on"
ROUTES = {
    "chat_completion": ("POST", "/v1/chat/completions", False),
    "chat_completion_stream": ("POST", "/v1/chat/completions", True),
    "responses": ("POST", "/v1/responses", False),
    "responses_stream": ("POST", "/v1/responses", True),
    "text_completion": ("POST", "/v1/completions", False),
    "text_completion_stream": ("POST", "/v1/completions", True),
    "embedding": ("POST", "/v1/embeddings", False),
    "rerank": ("POST", "/v1/rerank", False),
    "list_models": ("GET", "/v1/models", False),
    "transcription": ("POST", "/v1/audio/transcriptions", False),
    "transcription_stream": ("POST", "/v1/audio/transcriptions", True),
    "translation": ("POST", "/v1/audio/translations", False),
    "translation_stream": ("POST", "/v1/audio/translations", True),
    "messages": ("POST", "/v1/messages", False),
    "messages_stream": ("POST", "/v1/messages", True),
    "count_tokens": ("POST", "/v1/messages/count_tokens", False),
    "chat_completion_batch": ("POST", "/v1/chat/completions/batch", False),
    "tokenize": ("POST", "/tokenize", False),
    "detokenize": ("POST", "/detokenize", False),
    "tokenizer_info": ("GET", "/tokenizer_info", False),
    "score": ("POST", "/v1/score", False),
    "classify": ("POST", "/classify", False),
    "pooling": ("POST", "/pooling", False),
    "embed": ("POST", "/v2/embed", False),
    "generative_scoring": ("POST", "/generative_scoring", False),
}


def number(version):
    return [int(part) for part in version.split(".")]


def transcripts():
    """Yield the version of each transcript's folder, its path and what it holds."""
    for path in sorted(DATA.glob("vllm-*/*.json")):
        yield path.parent.name[len("vllm-"):], path, json.loads(path.read_text(encoding="utf-8"))


def is_event_stream(record):
    return any(name.lower() == "content-type" and value.startswith("text/event-stream")
               for name, value in record["headers"] or [])


def shown():
    """Find the newest version on which each operation was recorded with an answer that is no error."""
    found = {}
    for version, _, record in transcripts():
        fine = (record["status_line"] or "").startswith("HTTP/1.1 200")
        if not fine or '"error":' in "".join(record["frames"])[:200]:
            continue
        request = record["request"]
        for operation, (method, path, streamed) in ROUTES.items():
            if (request["method"], request["path"], is_event_stream(record)) == (method, path, streamed):
                found[operation] = max(found.get(operation, "0"), version, key=number)
    return found


def claims(text):
    """Read the table that has the column: the version beside each operation."""
    found = {}
    place = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|"):
            place = None
        elif any(cell.lower() == COLUMN for cell in cells):
            place = [cell.lower() for cell in cells].index(COLUMN)
        elif place is not None and place < len(cells):
            version = re.search(r"vLLM (\d+(?:\.\d+)+)", cells[place])
            for name in re.findall(r"`(\w+)`", " ".join(cells[:place])):
                if name in ROUTES:
                    found[name] = version.group(1) if version else cells[place]
    return found


def test_every_operation_was_shown():
    assert set(shown()) == set(ROUTES)


def test_the_readme_says_what_was_shown():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    assert claims(readme.read_text(encoding="utf-8")) == shown()


def test_a_table_is_read():
    text = """
| Operation | Route | Last shown on |
|---|---|---|
| `chat_completion`, `chat_completion_stream` | `/v1/chat/completions` | vLLM 0.31.0 |
| `rerank` | `/v1/rerank` | never |

`embedding` is no row.
"""
    assert claims(text) == {"chat_completion": "0.31.0", "chat_completion_stream": "0.31.0", "rerank": "never"}
    assert claims("| `rerank` | vLLM 0.1 |\n") == {}


def test_the_transcripts_name_where_they_came_from():
    for version, path, record in transcripts():
        assert record["server"] == "vLLM " + version, path
        assert record["name"] == path.stem


def test_the_live_suite_runs_the_version_of_the_newest_transcripts():
    text = (ROOT / "scripts" / "live_rig" / "environment.py").read_text(encoding="utf-8")
    installed = re.search(r'"VLLM_BRIDGE_LIVE_VLLM", "([0-9.]+)"', text)
    assert installed is not None
    assert installed.group(1) == max((version for version, _, _ in transcripts()), key=number)
