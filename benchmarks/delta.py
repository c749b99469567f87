"""What a delta weighs and costs, next to LZMA of the whole bundle and, if it is installed, bsdiff4.

Bundles with one model of int8 weights (normal, 25 steps wide, as a quantizer leaves them) and a synthetic training that
moves a tenth or a third of them by one step. Each row is made, and applied, in a process of its own; `memory` is what its
peak grew by while it did that, files that are mapped included. Real trainings differ: take these as the shape of things.
"""

import argparse
import importlib.util
import json
import lzma
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from edgeml import delta
from edgeml.ids import digest_of_file

WEIGHTS = 4_000_000
MOVED_FRACTIONS = (0.001, 0.1, 0.3)
PEERS = ("delta", "lzma of the whole", "bsdiff4")


def write(path, weights, version):
    """An archive like a bundle: what is small and changes, and the weights."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr(zipfile.ZipInfo("manifest.json"), json.dumps({"version": version, "pad": "x" * 2000}))
        file.writestr(zipfile.ZipInfo("model.onnx"), weights.tobytes())


def prepare(directory, fraction):
    import numpy as np  # here: the processes that are measured do without

    generator = np.random.default_rng(0)
    weights = np.clip(np.round(generator.normal(0, 25, WEIGHTS)), -126, 126).astype(np.int8)
    write(directory / "base", weights, "1.0.0")
    steps = generator.choice(np.array([-1, 1], np.int8), WEIGHTS)
    write(directory / "target", weights + steps * (generator.random(WEIGHTS) < fraction), "1.1.0")


def make(peer, directory):
    base, target, packed = (directory / name for name in ("base", "target", "packed"))
    if peer == "delta":
        packed.write_bytes(delta.make(base, target))
    elif peer == "bsdiff4":
        import bsdiff4

        packed.write_bytes(bsdiff4.diff(base.read_bytes(), target.read_bytes()))
    else:
        packed.write_bytes(lzma.compress(target.read_bytes()))


def apply(peer, directory):
    base, target, packed, out = (directory / name for name in ("base", "target", "packed", "out"))
    if peer == "delta":
        ends = delta.Expected(digest_of_file(base), digest_of_file(target), target.stat().st_size)
        delta.apply(base, packed, out, ends)
    elif peer == "bsdiff4":
        import bsdiff4

        out.write_bytes(bsdiff4.patch(base.read_bytes(), packed.read_bytes()))
    else:
        out.write_bytes(lzma.decompress(packed.read_bytes()))


def peak_bytes():
    """Peak of this process since it was started; getrusage would take over its parent's."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10


def child(work, peer, directory):
    """One piece of work, measured in this process."""
    if peer == "bsdiff4":
        importlib.import_module("bsdiff4.core")
    before, started_ns = peak_bytes(), time.perf_counter_ns()
    {"make": make, "apply": apply}[work](peer, Path(directory))
    taken_s = (time.perf_counter_ns() - started_ns) / 1e9
    print(json.dumps({"s": taken_s, "memory_bytes": peak_bytes() - before}))


def run(work, peer, directory):
    command = [sys.executable, __file__, "--child", work, peer, str(directory)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def measure(peer, fraction, directory):
    made = run("make", peer, directory)
    applied = run("apply", peer, directory)
    assert (directory / "out").read_bytes() == (directory / "target").read_bytes()
    size = (directory / "packed").stat().st_size
    return {
        "moved": fraction,
        "way": peer,
        "bytes": size,
        "of_full": size / (directory / "target").stat().st_size,
        "make_s": made["s"],
        "make_memory_bytes": made["memory_bytes"],
        "apply_s": applied["s"],
        "apply_memory_bytes": applied["memory_bytes"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    skipped = "" if importlib.util.find_spec("bsdiff4") else "bsdiff4 is not installed, so it is left out"
    rows = []
    for fraction in MOVED_FRACTIONS:
        with tempfile.TemporaryDirectory() as name:
            prepare(Path(name), fraction)
            rows += [
                measure(peer, fraction, Path(name)) for peer in PEERS if not (peer == "bsdiff4" and skipped)
            ]
    if arguments.json:
        print(json.dumps({"rows": rows, "skipped": skipped}))
        return
    print(f"moved  {'way':<18} of full     make   memory    apply   memory")
    for one in rows:
        print(
            f"{one['moved']:5.1%}  {one['way']:<18} {one['of_full']:7.2%}  {one['make_s']:5.2f} s"
            f"  {one['make_memory_bytes'] / 1e6:4.0f} MB  {one['apply_s']:5.2f} s  {one['apply_memory_bytes'] / 1e6:4.0f} MB"
        )
    if skipped:
        print(skipped)


if __name__ == "__main__":
    main()
