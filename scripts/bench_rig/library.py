"""Rounds over the clients of the library's kind, and over what importing them costs."""

import json
import sys
from typing import Any, Dict, List

from .peers import PYTHON_PEERS, python_of
from .processes import HERE, MEASURED, Failed, Upstream, run

HERE_TOO = ("ours", "requests", "http.client", "floor")  # run by this interpreter, with the checkout on its path
IMPORTS = {
    "ours": "vllm_bridge", "requests": "requests", "httpx": "httpx, httpx_sse", "openai": "openai",
    "litellm": "litellm",
}
PROBE = """
import time
before = time.process_time()
import %s
cost = time.process_time() - before
import sys
with open("/proc/self/status") as status:
    memory = [int(line.split()[1]) for line in status if line.startswith("VmRSS")][0]
print(cost * 1000, memory / 1024, len(sys.modules))
"""


def available(names: Dict[str, Any]) -> List[str]:
    """Return the clients that can be measured here: ours, requests, the floors, and the peers that are installed."""
    return [name for name in names if name in HERE_TOO or python_of(name) is not None]


def interpreter(name: str) -> str:
    """Return the interpreter that has a client."""
    return sys.executable if name in HERE_TOO else str(python_of(name))


def rounds(count: int, seconds: float, note: Any) -> List[Dict[str, Any]]:
    """Measure every client once a round, in turned order every other round."""
    order = available(dict.fromkeys(HERE_TOO + tuple(name for name in PYTHON_PEERS if name in IMPORTS)))
    results = []
    with Upstream() as address:
        for number in range(count):
            for name in order if number % 2 == 0 else order[::-1]:
                command = [interpreter(name), str(HERE / "clients.py"), name, address, str(seconds)]
                try:
                    results.append({**json.loads(run(command, MEASURED, 120 + 20 * seconds)), "round": number})
                except Failed as failure:
                    note("failed: %s" % failure)
            note("clients: round %d of %d" % (number + 1, count))
    return results


def import_rounds(count: int, note: Any) -> List[Dict[str, Any]]:
    """Measure ``import`` of every client in a fresh process: CPU milliseconds, MB resident, modules loaded."""
    order = available(IMPORTS)
    results = []
    for name in order:  # the first import writes bytecode
        run([interpreter(name), "-c", "import " + IMPORTS[name]], MEASURED, 300)
    for number in range(count):
        for name in order if number % 2 == 0 else order[::-1]:
            printed = run([interpreter(name), "-c", PROBE % IMPORTS[name]], MEASURED, 300).split()
            cost, memory, modules = map(float, printed[-3:])
            results.append({"name": name, "import_ms": cost, "import_mb": memory, "modules": modules, "round": number})
    note("imports: %d rounds" % count)
    return results
