"""The sandbox holds against code that goes around Python, and says so where it does not hold."""

import errno
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.sandbox.seccomp import filter_of
from converters.sandbox.system_calls import CALLS, UNIFIED_ALLOWED

ROOT = Path(__file__).parents[3]
SELF = 4711
ALLOWED, DENIED, ABSENT = "allowed", errno.EPERM, errno.ENOSYS

needs_seccomp = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in CALLS, reason="no seccomp filter for this machine"
)


def inside(code, folder, seals=True):
    """Run code in a process that is confined but for what it had open."""
    head = f"""
import ctypes, json, os, sys
from pathlib import Path
from converters.sandbox.breakout import check_sandbox
from converters.sandbox.confinement import Allowance, confine, seal
folder = Path({str(folder)!r})
layers = confine(Allowance(1 << 30, 20, 1 << 20), [folder])
{"assert seal()" if seals else ""}
libc = ctypes.CDLL(None, use_errno=True)
def raw(*arguments):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(one) if isinstance(one, int) else one for one in arguments])
    return "allowed" if result >= 0 else ctypes.get_errno()
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", head + code], capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SECRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_that_is_not_confined_is_told_from_one_that_is(tmp_path):
    code = """
import json
from pathlib import Path
from converters.sandbox.breakout import check_sandbox
from edgeml.errors import ConfigError
try:
    check_sandbox(Path(%r))
except ConfigError as error:
    print(json.dumps([error.message, error.hint]))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code % str(tmp_path)], capture_output=True, text=True, check=True, timeout=60,
        env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    message, hint = json.loads(done.stdout)
    assert "reach other programs, write files, start programs, start processes" in message
    assert "file.py:factory" in hint


@needs_seccomp
def test_nothing_gets_out_by_any_door(tmp_path):
    outside = tmp_path.parent / "outside"
    found = inside(
        f"""
import socket, threading
check_sandbox(folder)
def tried(act):
    try:
        act()
    except OSError as error:
        return error.errno
    return "done"
def native_open():
    handle = libc.open({str(outside)!r}.encode(), os.O_WRONLY | os.O_CREAT, 0o600)
    return "done" if handle >= 0 else ctypes.get_errno()
answers = dict(
    socket=tried(lambda: socket.socket(socket.AF_INET)), unix=tried(lambda: socket.socket(socket.AF_UNIX)),
    create=tried(lambda: open({str(outside)!r}, "w")), inside=tried(lambda: (folder / "x").write_text("x")), mkdir=tried(lambda: (folder / "x").mkdir()),
    fork=tried(os.fork), spawn=tried(lambda: os.posix_spawn("/bin/true", ["true"], {{}})), execute=tried(lambda: os.execv("/bin/true", ["true"])),
    kill=tried(lambda: os.kill(os.getppid(), 0)), chmod=tried(lambda: os.chmod(folder, 0o700)), native=native_open(),
    memfd=tried(lambda: os.memfd_create("x")), io_uring=raw(425, 1, 0), clone3=raw(435, 0, 0), pidfd=raw(434, os.getppid(), 0),
    shell=libc.system(b"true"), parent_death=libc.prctl(1, 0, 0, 0, 0),
)
thread = threading.Thread(target=lambda: answers.update(thread=tried(lambda: socket.socket(socket.AF_INET))))
thread.start(); thread.join()
print(json.dumps(answers))
""",
        tmp_path,
    )
    assert found.pop("shell") != 0
    assert found.pop("parent_death") == -1
    assert found.pop("io_uring") == found.pop("clone3") == found.pop("pidfd") == errno.ENOSYS
    assert {name for name, result in found.items() if result not in {errno.EPERM, errno.EACCES}} == set()
    assert not outside.exists()
    assert list(tmp_path.iterdir()) == []


@needs_seccomp
def test_what_a_model_needs_still_works(tmp_path):
    (tmp_path / "read.txt").write_text("mine")
    found = inside(
        """
import threading, hashlib, numpy
seen = []
thread = threading.Thread(target=lambda: seen.append((folder / "read.txt").read_text()))
thread.start(); thread.join()
print(json.dumps([seen, int(numpy.arange(5).sum()), len(os.urandom(4)), os.getuid() >= 0]))
""",
        tmp_path,
    )
    assert found == [["mine"], 10, 4, True]


def test_files_of_others_cannot_be_read_where_the_kernel_has_landlock(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.write_text("secret")
    found = inside(
        f"""
try:
    said = open({str(other)!r}).read()
except PermissionError:
    said = "refused"
print(json.dumps([sorted(layer.name for layer in layers), said]))
""",
        mine,
        seals=False,
    )
    layers, said = found
    if "LANDLOCK" not in layers:
        pytest.skip("this kernel has no Landlock")
    assert said == "refused"


def test_memory_has_an_end(tmp_path):
    found = inside(
        """
try:
    kept = bytearray(2 << 30)
    said = len(kept)
except MemoryError:
    said = "refused"
print(json.dumps(said))
""",
        tmp_path,
        seals=False,
    )
    assert found == "refused"


def decide(program, number, *arguments, arch):
    """Carry out a filter as the kernel does: what becomes of a call."""
    accumulator, place = 0, 0
    words = {
        0: number,
        4: arch,
        **{16 + 8 * index: value & 0xFFFFFFFF for index, value in enumerate(arguments)},
    }
    while True:
        code, true, false, constant = program[place]
        place += 1
        if code == 0x20:
            accumulator = words.get(constant, 0)
        elif code == 0x06:
            return {0x7FFF0000: ALLOWED, 0x80000000: "killed"}.get(constant, constant & 0xFFFF)
        else:
            met = {
                0x15: accumulator == constant,
                0x35: accumulator >= constant,
                0x45: bool(accumulator & constant),
            }[code]
            place += true if met else false


@pytest.mark.parametrize("machine", CALLS)
class TestFilter:
    """The filter's program, carried out here for both kinds of machine."""

    def decided(self, machine, number, *arguments):
        calls = CALLS[machine]
        return decide(filter_of(calls, SELF), number, *arguments, arch=calls.audit_arch)

    def test_a_file_may_be_opened_for_reading_alone(self, machine):
        for number, index in CALLS[machine].opens:
            for flags, expected in (
                (os.O_RDONLY | os.O_CLOEXEC, ALLOWED), (os.O_WRONLY, DENIED), (os.O_RDWR, DENIED), (os.O_RDONLY | os.O_CREAT, DENIED), (os.O_TRUNC, DENIED),
            ):  # fmt: skip
                assert self.decided(machine, number, *([0] * index), flags) == expected

    def test_a_thread_may_be_made_and_a_process_not(self, machine):
        assert self.decided(machine, CALLS[machine].clone, 0x00010000 | 0x100) == ALLOWED
        assert self.decided(machine, CALLS[machine].clone, 17) == DENIED

    def test_a_process_may_signal_itself_alone(self, machine):
        for number in CALLS[machine].signals:
            assert self.decided(machine, number, SELF, SELF, 6) == ALLOWED
            assert self.decided(machine, number, SELF + 1, SELF + 1, 9) == DENIED

    def test_limits_of_others_and_the_tie_to_the_parent_cannot_be_set(self, machine):
        assert self.decided(machine, CALLS[machine].prlimit, 0) == ALLOWED
        assert self.decided(machine, CALLS[machine].prlimit, 1) == DENIED
        assert self.decided(machine, CALLS[machine].prctl, 1) == DENIED
        assert self.decided(machine, CALLS[machine].prctl, 15) == ALLOWED

    def test_another_kind_of_machine_inside_this_one_ends_the_process(self, machine):
        calls = CALLS[machine]
        assert decide(filter_of(calls, SELF), 1, arch=calls.audit_arch ^ 1) == "killed"

    @given(number=st.integers(424, 2000))
    def test_new_calls_do_not_exist(self, machine, number):
        expected = ALLOWED if number in UNIFIED_ALLOWED else ABSENT
        assert self.decided(machine, number) == expected

    def test_forbidden_calls_fail_and_reading_writing_and_mapping_do_not(self, machine):
        assert {self.decided(machine, number) for number in CALLS[machine].forbidden} == {DENIED}
        usual = {"x86_64": (0, 1, 9, 11, 12, 202, 318, 231), "aarch64": (63, 64, 222, 215, 214, 98, 278, 94)}
        assert {self.decided(machine, number) for number in usual[machine]} == {ALLOWED}
