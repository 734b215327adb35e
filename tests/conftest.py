"""What holds for all tests."""

import os
import signal

from certificates import authority  # noqa: F401 (a fixture)

# A shell starts what it puts in the background with Ctrl-C ignored, and the programs that tests start would inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["VLLM_BRIDGE_CONVERSATION"] = ""  # the command line keeps none of what tests say

# Generated cases are the same in every run, so that no change fails by bad luck; tests/test_fuzz.py can search longer.
try:
    from hypothesis import settings
except ImportError:
    pass
else:
    settings.register_profile("suite", derandomize=True, database=None, deadline=None)
    settings.load_profile("suite")


def pytest_configure(config):
    config.addinivalue_line("markers", "no_cover: not counted by the coverage, which makes a loop three times as long")


def pytest_collection_modifyitems(items):
    """Let written cases alone count for the coverage: what a generated case happens to reach is not tested by it."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("no_cover")
