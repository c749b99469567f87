"""The least that another process can cost: bytes there over a socket pair, a few back, both asleep meanwhile."""

import socket
import subprocess
import sys

ANSWER_BYTES = 40
_CHILD = """
import socket, sys
stream, wanted = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
buffer = bytearray(wanted)
view = memoryview(buffer)
answer = bytes(int(sys.argv[3]))
while True:
    got = 0
    while got < wanted:
        more = stream.recv_into(view[got:])
        if not more:
            sys.exit()
        got += more
    stream.sendall(answer)
"""


class Echo:
    """A bare Python process that reads a request of one length and answers it."""

    def __init__(self, length):
        self._ours, theirs = socket.socketpair()
        self._request = bytes(length)
        self._child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(theirs.fileno()), str(length), str(ANSWER_BYTES)],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ours.close()
        self._child.wait(20)

    def call(self):
        """Ask once and wait for the answer."""
        self._ours.sendall(self._request)
        self._ours.recv(ANSWER_BYTES, socket.MSG_WAITALL)
