"""A thin, lossy line: everything that a device says and hears goes through it, on one rate.

An asyncio proxy. A piece that is lost is one that comes a round trip later, as TCP makes it look; pieces of different
connections take turns, so there is no router here that queues one in front of all others.
"""

import asyncio
import random
import threading
from functools import partial

PIECE_BYTES = 256
QUEUE_PIECES = 4


class Line:
    """Listens for each of some ports of this machine, and passes on what comes."""

    def __init__(self, ports, bytes_s, rtt_s, lost):
        self._bytes_s, self._rtt_s, self._lost = bytes_s, rtt_s, lost
        self._chance = random.Random(9)
        self.passed_bytes = 0
        self._flows = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._servers, self._tasks = [], set()
        self.ports = dict.fromkeys(ports, 0)
        self.mend()

    def mend(self):
        """Let everybody through, by the same ports as before."""
        self._call(self._listen())

    def hush(self):
        """Carry nothing more either way, so that neither end knows of the other's end; as a router that lost its power."""
        self._call(self._hold())

    def cut(self):
        """Throw out whoever is there, and let nobody through."""
        self._call(self._hang_up())

    def close(self):
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self):
        self._turn = asyncio.Lock()
        self._flows.set()
        for far, near in self.ports.items():
            server = await asyncio.start_server(partial(self._join, far), "127.0.0.1", near)
            self._servers.append(server)
            self.ports[far] = server.sockets[0].getsockname()[1]

    async def _hold(self):
        self._flows.clear()

    async def _hang_up(self):
        for one in self._servers:
            one.close()
        self._servers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _join(self, port, reader, writer):
        # A task of ours: of one that asyncio makes here, it complains when it is cancelled.
        task = self._loop.create_task(self._carry(port, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, port, reader, writer):
        writers = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            writers.append(back)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back))
                both.create_task(self._pass(there, writer))
        except* OSError:
            pass  # one of them hung up, or nobody is there; so do we
        finally:
            for one in writers:
                # What is still on the way when the line is cut does not come.
                one.transport.abort()

    async def _pass(self, reader, writer):
        queue = asyncio.Queue(QUEUE_PIECES)
        # A group: when either ends, by whatever, the other does.
        async with asyncio.TaskGroup() as both:
            both.create_task(self._deliver(queue, writer))
            while piece := await reader.read(PIECE_BYTES):
                async with self._turn:
                    await asyncio.sleep(len(piece) / self._bytes_s)
                self.passed_bytes += len(piece)
                late = self._rtt_s if self._chance.random() < self._lost else 0
                await queue.put((self._loop.time() + self._rtt_s / 2 + late, piece))
            await queue.put((0, b""))

    async def _deliver(self, queue, writer):
        while True:
            due, piece = await queue.get()
            await self._flows.wait()
            if not piece:
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(max(0, due - self._loop.time()))
            writer.write(piece)
            await writer.drain()
