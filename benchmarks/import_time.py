"""How long until the command line answers: `import mmbert` and `mmbert --help` against `import transformers`.

Every figure is the median of several fresh processes in seconds, ours and the peer's in turn within the same run.
The time of a Python that does nothing is printed too: it is part of both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

EMPTY = ["-c", "pass"]
OURS = {"import_time": ["-c", "import mmbert"], "help_time": ["-m", "mmbert", "--help"]}
PEER_NAME, PEER = "import transformers", ["-c", "import transformers"]


def seconds(arguments: list[str]) -> float:
    """Wall-clock seconds of one Python process with these arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three processes each instead of seven")
    rounds = 3 if parser.parse_args().quick else 7

    commands = {**OURS, "peer": PEER, "python": EMPTY}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, arguments in commands.items():
            taken = seconds(arguments)
            if number:  # the first round fills the file cache
                times[name].append(taken)
    median = {name: statistics.median(found) for name, found in times.items()}

    for figure, peer_name, peer in [
        ("import_time", PEER_NAME, median["peer"]),
        ("help_time", PEER_NAME, median["peer"]),
        ("import_time_against_empty_python", "python -c pass", median["python"]),
        ("help_time_against_empty_python", "python -c pass", median["python"]),
    ]:
        value = median[figure.removesuffix("_against_empty_python")]
        line = {"figure": figure, "value": round(value, 4), "unit": "s"}
        print(json.dumps(line | {"peer": peer_name, "peer_value": round(peer, 4), "ratio": round(peer / value, 2)}))


if __name__ == "__main__":
    main()
