"""How long `edgeml --help` takes, next to a bare interpreter in the same run, and what it imports.

Targets: under 0.4 s; no torch, numpy or onnxruntime.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "numpy", "onnxruntime", "sqlalchemy", "tuf", "paho")
ROUNDS = 9


def seconds(command):
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    bare, helped = [], []
    for _ in range(ROUNDS):
        bare.append(seconds([sys.executable, "-c", "pass"]))
        helped.append(seconds([sys.executable, "-m", "edgeml", "--help"]))
    probe = (
        "import sys\nfrom click.testing import CliRunner\nfrom edgeml.cli import edgeml\nCliRunner().invoke(edgeml, ['--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    imported = subprocess.run(
        [sys.executable, "-c", probe], check=True, capture_output=True, text=True
    ).stdout.strip()
    result = {
        "help_s": statistics.median(helped),
        "bare_interpreter_s": statistics.median(bare),
        "ratio": statistics.median(helped) / statistics.median(bare),
        "heavy_modules": imported,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"edgeml --help     {result['help_s']:.3f} s   (target: under 0.4 s)")
    print(f"bare interpreter  {result['bare_interpreter_s']:.3f} s   ratio {result['ratio']:.1f}")
    print(f"heavy modules it imported: {imported}")


if __name__ == "__main__":
    main()
