"""A thin, lossy line: everything that a device says and hears goes through it, on one rate.

An asyncio proxy. A piece that is lost is one that comes a round trip later, as TCP makes it look; pieces of different
connections take turns, so there is no router here that queues one in front of all others.
"""

import asyncio
import random
import threading

PIECE_BYTES = 256
QUEUE_PIECES = 4


class Line:
    """Listens for each of some ports of this machine, and passes on what comes."""

    def __init__(self, ports, bytes_s, rtt_s, lost):
        self._bytes_s, self._rtt_s, self._lost = bytes_s, rtt_s, lost
        self._chance = random.Random(9)
        self.passed_bytes = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.ports = dict(zip(ports, self._call(self._listen(ports)), strict=True))

    def _call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self, ports):
        self._turn, self._tasks = asyncio.Lock(), set()
        self._servers = [await self._server(port) for port in ports]
        return [one.sockets[0].getsockname()[1] for one in self._servers]

    async def _server(self, port):
        async def joined(reader, writer):
            self._tasks.add(asyncio.current_task())
            there, back = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
            except (OSError, asyncio.CancelledError):
                pass  # one of them hung up, or the line is closed; so do we
            finally:
                for one in (writer, back):
                    one.close()
                self._tasks.discard(asyncio.current_task())

        return await asyncio.start_server(joined, "127.0.0.1", 0)

    async def _pass(self, reader, writer):
        queue = asyncio.Queue(QUEUE_PIECES)
        deliverer = asyncio.create_task(self._deliver(queue, writer))
        while piece := await reader.read(PIECE_BYTES):
            async with self._turn:
                await asyncio.sleep(len(piece) / self._bytes_s)
            self.passed_bytes += len(piece)
            late = self._rtt_s if self._chance.random() < self._lost else 0
            await queue.put((self._loop.time() + self._rtt_s / 2 + late, piece))
        await queue.put((0, b""))
        await deliverer

    async def _deliver(self, queue, writer):
        while True:
            due, piece = await queue.get()
            if not piece:
                writer.close()
                return
            await asyncio.sleep(max(0, due - self._loop.time()))
            writer.write(piece)
            await writer.drain()

    def close(self):
        async def end():
            for one in self._servers:
                one.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
