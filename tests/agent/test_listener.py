"""Where the endpoint listens: ports, and unix sockets with what an earlier agent left there."""

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap

import pytest

from agent.config import load
from agent.listener import Exposure, Listener, Port, UnixSocket, parse_listen
from edgeml.errors import ConfigError


def test_an_address_that_is_taken_is_the_users_to_fix():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Port("127.0.0.1", other.getsockname()[1])
        with pytest.raises(ConfigError, match="cannot listen on"):
            Listener(address)


@pytest.mark.parametrize(
    "listen", ["", "8090", "127.0.0.1", "host:80", "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:-1"]
)
def test_an_address_that_is_none_is_refused(listen):
    with pytest.raises(ConfigError, match="no address"):
        parse_listen(listen, Exposure.NETWORK)


@pytest.mark.parametrize("listen", ["0.0.0.0:8090", "[::]:8090", "192.168.1.5:80"])
def test_addresses_that_others_reach_need_a_word(listen):
    with pytest.raises(ConfigError, match="other machines"):
        parse_listen(listen, Exposure.LOOPBACK)
    assert parse_listen(listen, Exposure.NETWORK).port > 0


@pytest.mark.parametrize("listen", ["unix:", "unix:a\0b"])
def test_a_unix_socket_needs_a_path(listen):
    with pytest.raises(ConfigError, match="names no socket"):
        parse_listen(listen, Exposure.LOOPBACK)


@pytest.mark.parametrize("listen", ["unix:/run/agent.sock", "unix:///run/agent.sock"])
def test_a_path_may_be_written_as_a_url(listen):
    assert str(parse_listen(listen, Exposure.LOOPBACK).path) == "/run/agent.sock"


def test_a_path_in_the_settings_is_relative_to_their_file(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('device = "d"\nprofile = "p"\nstorage = "s"\n[serve]\nlisten = "unix:a.sock"\n')
    assert load(path).serve.listen == f"unix:{tmp_path}/a.sock"
    path.write_text('device = "d"\nprofile = "p"\nstorage = "s"\n[serve]\nlisten = "127.0.0.1:1"\n')
    assert load(path).serve.listen == "127.0.0.1:1"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agent.sock"


def test_only_the_agents_user_may_connect_and_the_file_goes_with_it(path):
    earlier = os.umask(0)
    try:
        listener = Listener(UnixSocket(path))
    finally:
        os.umask(earlier)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert listener.url == f"unix://{path}"
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(path))
    listener.close()
    assert not path.exists()


def test_what_a_killed_agent_left_is_replaced(path):
    program = f"""
        import os, signal
        from pathlib import Path
        from agent.listener import Listener, UnixSocket
        listener = Listener(UnixSocket(Path({str(path)!r})))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert path.is_socket()
    listener = Listener(UnixSocket(path))
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(path))
    listener.close()


def test_one_that_lives_is_left_alone(path):
    first = Listener(UnixSocket(path))
    with pytest.raises(ConfigError, match="something listens on"):
        Listener(UnixSocket(path))
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(path))
    first.close()


def test_one_whose_backlog_is_full_lives(path):
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ConfigError, match="something listens on"):
            Listener(UnixSocket(path))


@pytest.mark.parametrize("make", [lambda path: path.write_text("precious"), lambda path: path.mkdir()])
def test_a_file_that_is_no_socket_is_left_alone(path, make):
    make(path)
    with pytest.raises(ConfigError, match="is no socket"):
        Listener(UnixSocket(path))
    assert path.exists()


def test_a_link_is_not_followed(path, tmp_path):
    (tmp_path / "precious").write_text("precious")
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match="is no socket"):
        Listener(UnixSocket(path))
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/agent.sock", "n" * 200])
def test_a_path_that_cannot_be_is_the_users_to_fix(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot listen on"):
        Listener(UnixSocket(tmp_path / name))


def test_closing_leaves_a_successors_file(path):
    first = Listener(UnixSocket(path))
    path.unlink()
    second = Listener(UnixSocket(path))
    first.close()
    assert path.is_socket()
    second.close()
    assert not path.exists()
