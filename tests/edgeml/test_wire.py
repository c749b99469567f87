"""The kernel's count of connections: all bytes of both directions, the ones that nobody read, and failed handshakes."""

import socket
import ssl
import threading

import pytest

from edgeml.wire import ATTEMPT_BYTES, HEADER_BYTES, WireMeter, wire_bytes


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    yield near, far
    near.close()
    far.close()


def settled(read, at_least):
    """What is read once it is enough; the peer's confirmations come when they come."""
    for _ in range(2000):
        if (found := read()) >= at_least:
            return found
        threading.Event().wait(0.005)
    raise AssertionError(f"{read()} never became {at_least}")


def test_both_directions_count_with_their_headers_whether_read_or_not(pair):
    near, far = pair
    near.sendall(b"a" * 10_000)
    far.sendall(b"b" * 5_000)
    found = settled(lambda: wire_bytes(near), 15_000)
    assert 15_000 + 4 * HEADER_BYTES <= found <= 15_000 + 30 * HEADER_BYTES
    assert near.recv(1) == b"b"


def test_a_closed_connection_keeps_what_was_seen_of_it(pair):
    near, far = pair
    meter = WireMeter()
    meter.watch(near)
    meter.watch(near)
    near.sendall(b"a" * 1_000)
    far.recv(1_000)
    before = settled(meter.look, 1_000)
    near.close()
    assert meter.look() == before
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as next_one,
    ):
        # Its descriptor may be the old one's.
        meter.watch(next_one)
        assert before < meter.look() < before + 1_000
    meter.attempt()
    meter.add(7)
    assert meter.look() >= before + ATTEMPT_BYTES + 7


def test_what_is_no_connection_over_tcp_costs_nothing():
    near, far = socket.socketpair()
    with near, far:
        near.sendall(b"x")
        assert wire_bytes(near) == 0


def test_a_handshake_that_fails_counts():
    meter, context = WireMeter(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    meter.meter_handshakes(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse():
            far, _ = listener.accept()
            far.recv(1)
            far.sendall(b"this is no TLS at all")
            far.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        with (
            socket.create_connection(listener.getsockname()) as plain,
            pytest.raises(ssl.SSLError),
            context.wrap_socket(plain, server_hostname="localhost"),
        ):
            pass
        thread.join()
    assert meter.look() > 200
