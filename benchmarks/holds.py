"""How fast money is held and attempts are recorded: holds, outbox, Kafka's path, recovery.

Each figure comes from the module that is named beside it, which also runs alone. Recovery has a
process of its own, as a gateway that starts again has. The last line is one JSON object.

Run: make bench-holds            a million open attempts
     make bench-holds OPEN=N     fewer, and scaled up
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks import kafka, leases, outbox


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--holds", type=int, default=100_000, help="from one lease")
    parser.add_argument("--requests", type=int, default=100_000, help="through the outbox")
    parser.add_argument("--events", type=int, default=400_000, help="over Kafka")
    parser.add_argument("--open", type=int, default=1_000_000, help="attempts to recover")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        **leases.measure(holds=options.holds),
        **outbox.measure(options.requests),
        **kafka.measure_on_own_broker(options.events),
        **_recovery(options.open),
    }
    print(json.dumps(figures))


def _recovery(open_count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.recovery", "--open", str(open_count)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(told)


if __name__ == "__main__":
    main()
