"""Control groups: which trees are recognized, and what the kernel of this machine really does with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cgroup import Delegation, Groups, Undelegated, find

TREES = Path(__file__).parent / "trees"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ("raspberry-pi", "the group /system.slice/edgeml-agent.service has no controller for memory"),
        ("v2-undelegated", "systemd keeps the group /system.slice/edgeml-agent.service to itself: the unit needs Delegate=yes"),
        ("v1-hybrid", "the agent is in the root group"),
        ("container", "cgroup v2 is not mounted, or only for reading"),
        ("none", "cgroup v2 is not mounted, or only for reading"),
    ],
)  # fmt: skip
def test_a_machine_that_gives_no_group_away_is_recognized_with_the_reason(tree, reason, monkeypatch):
    monkeypatch.setattr("agent.cgroup.os.geteuid", lambda: 0)
    assert find(TREES / tree) == Undelegated(reason)


def test_a_group_that_was_given_away_is_found():
    base = TREES / "v2-delegated/sys/fs/cgroup/system.slice/edgeml-agent.service"
    assert find(TREES / "v2-delegated") == Delegation(base, ("memory", "cpu"))


def test_a_user_to_whom_systemd_gave_a_group_needs_no_mark_to_see_that(monkeypatch):
    monkeypatch.setattr("agent.cgroup.os.geteuid", lambda: 1000)
    base = TREES / "v2-undelegated/sys/fs/cgroup/system.slice/edgeml-agent.service"
    assert find(TREES / "v2-undelegated") == Delegation(base, ("memory", "cpu"))


def test_an_agent_that_was_put_into_its_last_lifes_group_finds_the_one_above(tmp_path):
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-r", TREES / "v2-delegated", tree], check=True)
    (tree / "proc/self/cgroup").write_text("0::/system.slice/edgeml-agent.service/supervisor\n")
    assert find(tree) == Delegation(
        tree / "sys/fs/cgroup/system.slice/edgeml-agent.service", ("memory", "cpu")
    )


def test_limits_are_written_as_the_kernel_reads_them(tmp_path):
    """A folder in place of a kernel: what is written where, not what it does."""
    for name in ("supervisor", "models", "models/digits.7"):
        (tmp_path / name).mkdir(parents=True)
        for file in ("cgroup.procs", "cgroup.subtree_control", "memory.max", "memory.swap.max", "cpu.max"):
            (tmp_path / name / file).touch()
    (tmp_path / "cgroup.subtree_control").touch()
    (tmp_path / "models/digits.7/cgroup.events").write_text("populated 1\nfrozen 0\n")
    groups = Groups(Delegation(tmp_path, ("memory", "cpu")))

    def written(name):
        return (tmp_path / name).read_text()

    groups.limit(100 << 20, 1.5)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +cpu"
    assert [written(f"models/{name}") for name in ("memory.max", "memory.swap.max", "cpu.max")] == [
        "104857600", "0", "30000 20000",
    ]  # fmt: skip
    groups.resize(7, "digits", None)
    assert written("models/digits.7/memory.max") == "max"
    groups.limit(None, 0.001)
    assert written("models/cpu.max").startswith("1000 20000")


@pytest.fixture
def group():
    """Make a group of this machine's kernel, with whatever controllers it has to give."""
    mounts = [
        line.split()
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup2 " in line
    ]
    if not mounts:
        pytest.skip("cgroup v2 is not mounted here")
    path = Path(mounts[0][4]) / f"edgeml-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made here: {error.strerror}")
    yield path
    for folder, _, _ in os.walk(path, topdown=False):
        Path(folder).rmdir()


def run(group, code, *arguments):
    """Run code in a process that is in `group` and leaves it when it ends; return what it printed as JSON."""
    script = (
        "import json, os, subprocess, sys, time\nfrom pathlib import Path\nfrom agent.cgroup import Delegation, Groups, find\n"
        f"group = Path({str(group)!r})\n(group / 'cgroup.procs').write_text(str(os.getpid()))\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.processes
def test_the_kernel_takes_the_arrangement_and_gives_the_groups_back(group):
    code = """
delegation = find(wanted=())
assert delegation == Delegation(group, ()), delegation
groups = Groups(delegation)
child = subprocess.Popen(["sleep", "60"])
groups.place(child.pid, "digits", 1 << 30)
def cgroup(pid): return Path(f"/proc/{pid}/cgroup").read_text().split("0::")[1].strip()
placed = [cgroup(os.getpid()), cgroup(child.pid)]
running = groups.sweep()
child.kill()
child.wait()
gone = groups.sweep()
again = find(wanted=()).base == group
print(json.dumps([placed, len(running), [[one.model, one.oom_kills] for one in gone], groups.sweep() == (), again]))
"""
    placed, running, gone, empty, again = run(group, code)
    assert placed[0] == f"/{group.name}/supervisor"
    assert placed[1].startswith(f"/{group.name}/models/digits.")
    assert (running, gone, empty, again) == (0, [["digits", 0]], True, True)


@pytest.mark.processes
def test_a_process_that_is_gone_cannot_be_placed_and_leaves_no_group(group):
    code = """
groups = Groups(find(wanted=()))
child = subprocess.Popen(["true"])
child.wait()
try:
    groups.place(child.pid, "digits", None)
except ProcessLookupError as error:
    print(json.dumps([one.name for one in (group / "models").iterdir() if one.is_dir()]))
"""
    assert run(group, code) == []


@pytest.mark.processes
def test_memory_over_the_limit_is_killed_by_the_kernel(group):
    controllers = (group / "cgroup.controllers").read_text().split()
    if "memory" not in controllers:
        pytest.skip(f"this kernel gives cgroup v2 no memory controller here, only {controllers or 'none'}")
    code = """
groups = Groups(find())
groups.limit(200 << 20, 1.0)
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read(1); held = bytearray(100 << 20)"], stdin=subprocess.PIPE)
groups.place(child.pid, "digits", 50 << 20)
child.communicate(b"x")
gone = groups.sweep()
print(json.dumps([child.returncode, [[one.model, one.oom_kills] for one in gone]]))
"""
    assert run(group, code) == [-9, [["digits", 1]]]
