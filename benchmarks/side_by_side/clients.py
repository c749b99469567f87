"""Clients that are the same for every server: one connection each, a prepared body, the answer read and not parsed."""

import http.client
import subprocess
import sys
import time

CLIENT = """
import http.client, sys, time
port, headers, seconds = int(sys.argv[1]), eval(sys.argv[2]), float(sys.argv[3])
body = sys.stdin.buffer.read()
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
def ask():
    connection.request("POST", "/v2/models/perceptron/infer", body, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status
assert ask() == 200
print("ready", flush=True)
while time.time() < float(sys.argv[4]):
    time.sleep(0.001)
taken, statuses = [], set()
until = time.perf_counter() + seconds
while (started := time.perf_counter()) < until:
    statuses.add(ask())
    taken.append(time.perf_counter() - started)
assert statuses == {200}, statuses
print(*(round(one * 1e6) for one in taken))
"""


class Connection:
    """One client in this process."""

    def __init__(self, port, body, headers):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.body, self.headers = body, headers

    def call(self):
        """Ask once."""
        self.connection.request("POST", "/v2/models/perceptron/infer", self.body, self.headers)
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status == http.HTTPStatus.OK, content


def crowd(count, port, body, headers, seconds):
    """Let `count` processes ask for some seconds at the same time; return requests a second, and latencies in us."""
    begin = time.time() + 1.5
    command = [sys.executable, "-S", "-c", CLIENT, str(port), repr(headers), str(seconds), str(begin)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)
    ]
    for process in processes:
        process.stdin.write(body)
        process.stdin.close()
    taken = []
    for process in processes:
        lines = process.stdout.read().split(b"\n")
        assert process.wait(30) == 0
        taken += [int(one) for one in lines[1].split()]
    return len(taken) / seconds, sorted(taken)
