"""The run itself: phases in turn, a look at the gateway after each turn, and the report."""

import argparse
import pathlib
import sys
import tempfile
import time
from typing import Counter, List, Optional, Sequence

from .servers import Gateway, Sample, StandIn
from .traffic import FAULTS, QUIET, Client, Outages, Tally, Traffic

API_KEY = "sk-soak-0123456789abcdef"
TURN = 30.0  # seconds of one turn through the phases, less in a short run
SETTLE = 20.0  # seconds that the gateway has to let go of what a turn left
SPARE_MEMORY = 6 * 1024  # KiB that the second half of a run may add: the allocator is no leak
SHOWN = 60  # lines of a list
HEAD = "%8s %10s %12s %10s %13s %10s"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run; the exit code is 1 if something failed that nobody had asked to fail, or if a line is not flat."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__ + " Linux only: it reads /proc.",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: %(default)g)")
    parser.add_argument("--clients", type=int, default=8, help="requests at once (default: %(default)d)")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="vllm_bridge_soak_") as folder:
        return _Soak(given.minutes * 60, given.clients, pathlib.Path(folder)).run()


class _Soak:
    def __init__(self, seconds: float, clients: int, folder: pathlib.Path) -> None:
        self._seconds = seconds
        self._clients = clients
        self._tally = Tally()
        self._outages = Outages()
        self._samples: List[Sample] = []
        self._servers = [StandIn(), StandIn()]
        try:
            self._gateway = Gateway([server.url for server in self._servers], API_KEY, folder)
        except BaseException:
            self._end_servers()
            raise

    def run(self) -> int:
        code: Optional[int] = None
        in_flight = ""
        try:
            self._turns()
            in_flight = self._in_flight()
        finally:
            code = self._gateway.stop()
            self._end_servers()
        return self._report(code, in_flight)

    def _turns(self) -> None:
        traffic = Traffic(self._gateway.port, API_KEY, self._clients, self._tally, self._outages)
        try:
            started = time.monotonic()
            turn = min(TURN, self._seconds / 4)
            print(HEAD % ("seconds", "requests", "failures", "memory KiB", "threads", "descriptors"), flush=True)
            while True:
                number = len(self._samples)
                self._turn(traffic, turn, number % 2)
                traffic.rest()
                sample = self._settled()
                self._samples.append(sample)
                seconds = time.monotonic() - started
                failed = sum(self._tally.injected.values())
                print(HEAD % (("%.0f" % seconds, sum(self._tally.requests.values()), failed) + sample), flush=True)
                if seconds + turn / 2 > self._seconds and number:
                    return
        finally:
            traffic.stop()

    def _turn(self, traffic: Traffic, seconds: float, victim: int) -> None:
        """Quiet, faults, one server killed, quiet without it, faults without it, quiet with it again."""
        traffic.run(QUIET, seconds * 0.25)
        traffic.run(QUIET + FAULTS, seconds * 0.25)
        traffic.run(QUIET, seconds * 0.05)
        self._outages.killing()
        self._servers[victim].kill()
        time.sleep(0.2)  # what it was answering is found broken only now
        self._outages.killed()
        traffic.run(QUIET, seconds * 0.1)
        traffic.run(QUIET + FAULTS, seconds * 0.1)
        self._servers[victim].start()
        self._outages.back()
        traffic.run(QUIET, seconds * 0.25)

    def _settled(self) -> Sample:
        """Return what the gateway holds once it has let go of its clients."""
        end = time.monotonic() + SETTLE
        sample = self._gateway.sample()
        while time.monotonic() < end and sample.threads > (self._samples[0].threads if self._samples else 3):
            time.sleep(0.1)
            sample = self._gateway.sample()
        return sample

    def _in_flight(self) -> str:
        """Return the lines of the metrics that say that a request is still being answered."""
        client = Client(self._gateway.port, API_KEY)
        try:
            _, page = client.whole("GET", "/metrics")
        finally:
            client.close()
        lines = [line for line in page.decode().splitlines() if line.startswith("vllm_bridge_requests_in_flight{")]
        return "; ".join(line for line in lines if not line.endswith(" 0"))

    def _end_servers(self) -> None:
        for server in self._servers:
            server.kill()

    # ------------------------------------------------------------ the report

    def _report(self, code: Optional[int], in_flight: str) -> int:
        tally = self._tally
        _list("requests", tally.requests)
        _list("failures that were asked for", tally.injected)
        _list("failures that were not", tally.unexplained)
        faults = ["%d requests failed unasked" % sum(tally.unexplained.values())] if tally.unexplained else []
        faults += self._growth()
        faults += ["the gateway logged: %s" % line for line in self._gateway.complaints()[:5]]
        if in_flight:
            faults.append("still in flight: %s" % in_flight)
        if code != 0:
            faults.append("the gateway's exit code was %s" % code)
        first, last = self._samples[0], self._samples[-1]
        print("\n%-12s %10s %10s" % ("", "start", "end"))
        for name, before, after in zip(("memory KiB", "threads", "descriptors"), first, last):
            print("%-12s %10d %10d" % (name, before, after))
        print("\n" + ("\n".join("NOT FLAT OR NOT CLEAN: %s" % fault for fault in faults) or "flat and clean"))
        return 1 if faults else 0

    def _growth(self) -> List[str]:
        """Say which lines are not flat: all of the threads and descriptors, the memory from the middle on."""
        first, last = self._samples[0], self._samples[-1]
        faults = []
        if last.threads > first.threads:
            faults.append("threads: %d at the start, %d at the end" % (first.threads, last.threads))
        # Idle connections to each server are kept, never more than there were requests at once.
        if last.descriptors > first.descriptors + 2 * self._clients:
            faults.append("descriptors: %d at the start, %d at the end" % (first.descriptors, last.descriptors))
        middle = max(sample.memory for sample in self._samples[:len(self._samples) // 2 + 1])
        if last.memory > middle * 1.03 + SPARE_MEMORY:
            faults.append("memory: %d KiB in the first half, %d KiB at the end" % (middle, last.memory))
        return faults


def _list(title: str, counts: "Counter[str]") -> None:
    print("\n%s: %d" % (title, sum(counts.values())))
    for name in sorted(counts)[:SHOWN]:
        print("  %7d  %s" % (counts[name], name))


if __name__ == "__main__":
    sys.exit(main())
