"""How long `edgeml demo` takes after set-up, and whether its story ends as it should. Target: under 120 s on 2 cores."""

import argparse
import json
import subprocess
import sys
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    rounds = []
    for _ in range(arguments.rounds):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "edgeml", "demo", "--json"], capture_output=True, text=True, check=False
        )
        told = json.loads(done.stdout) if done.returncode == 0 else {}
        rounds.append(
            {
                "seconds": time.perf_counter() - started,
                "exit_code": done.returncode,
                "outcomes": told.get("outcomes"),
                "drifted": told.get("drifted"),
            }
        )
    if arguments.json:
        print(json.dumps(rounds))
        return
    for one in rounds:
        print(
            f"{one['seconds']:.0f} s  exit code {one['exit_code']}  {one['outcomes']}  drifted: {one['drifted']}"
        )


if __name__ == "__main__":
    main()
