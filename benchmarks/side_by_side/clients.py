"""Clients that are the same for every server: one connection each, a prepared request, the answer read and not parsed.

They speak through a bare socket. Python's own HTTP client takes a quarter of a millisecond for each request, as long as
the model, and eight of them leave the servers they ask little of two processors.
"""

import socket
import subprocess
import sys
import time
from pathlib import Path

END = b"\r\n\r\n"
LENGTH = b"content-length:"
RECEIVE_BYTES = 1 << 16


class Connection:
    """One client in this process."""

    def __init__(self, port, body, headers):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        named = {"Host": "127.0.0.1", "Content-Length": str(len(body))} | headers
        lines = ["POST /v2/models/convolutional/infer HTTP/1.1"] + [
            f"{key}: {value}" for key, value in named.items()
        ]
        self.request = "\r\n".join(lines).encode() + END + body

    def call(self):
        """Ask once."""
        self.socket.sendall(self.request)
        answer = self._received()
        while END not in answer:
            answer += self._received()
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer.decode("latin-1"))
        head = answer.index(END)
        stated = answer[:head].lower().partition(LENGTH)[2].partition(b"\r\n")[0]
        end = head + len(END) + int(stated)
        while len(answer) < end:
            answer += self._received()

    def _received(self):
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data

    def close(self):
        """Hang up."""
        self.socket.close()


def crowd(count, port, body, headers, seconds):
    """Let `count` processes ask for some seconds at the same time; return requests a second, and latencies in us."""
    begin = time.time() + 1.5
    command = [sys.executable, "-S", str(Path(__file__)), str(port), repr(headers), str(seconds), str(begin)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)
    ]
    for process in processes:
        process.stdin.write(body)
        process.stdin.close()
    taken = []
    for process in processes:
        said = process.stdout.read()
        assert process.wait(30) == 0
        taken += [int(one) for one in said.split()]
    return len(taken) / seconds, sorted(taken)


def main():
    """One of the crowd: wait until all are there, ask for some seconds, print what each answer took."""
    port, headers, seconds, begin = sys.argv[1:]
    connection = Connection(int(port), sys.stdin.buffer.read(), eval(headers))
    connection.call()
    while time.time() < float(begin):
        time.sleep(0.001)
    taken = []
    until = time.perf_counter() + float(seconds)
    while (started := time.perf_counter()) < until:
        connection.call()
        taken.append(time.perf_counter() - started)
    print(*(round(one * 1e6) for one in taken))


if __name__ == "__main__":
    main()
