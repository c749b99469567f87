"""A proxy that counts: every byte of TCP that a device sends or is sent goes through it, and it can hang up."""

import asyncio
import socket
import threading

BUFFER_BYTES = 4096
"""Of the kernel, for what was passed on and not taken yet: nothing counts long before it is on its way."""


class Counter:
    """Listens for each of some ports of this machine, passes on what comes, and counts it."""

    def __init__(self, ports):
        self.count_bytes = 0
        self.connections = 0
        self.refuses = False
        """Hang up on whoever comes, at once."""
        self.cut_after_bytes = None
        """Hang up on everybody once so many more bytes have passed."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.ports = dict(zip(ports, self._call(self._listen(ports)), strict=True))

    def _call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self, ports):
        self._writers, self._tasks = set(), set()
        self._servers = [await self._server(port) for port in ports]
        return [one.sockets[0].getsockname()[1] for one in self._servers]

    async def _server(self, port):
        async def joined(reader, writer):
            self.connections += 1
            if self.refuses:
                writer.transport.abort()
                return
            self._tasks.add(asyncio.current_task())
            try:
                there, back = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.transport.abort()
                self._tasks.discard(asyncio.current_task())
                return
            for one in (writer, back):
                one.transport.set_write_buffer_limits(0)
                one.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            self._writers |= {writer, back}
            try:
                await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
            except (OSError, asyncio.CancelledError):
                pass  # one of them hung up, or everything is closed; so do we
            finally:
                for one in (writer, back):
                    one.transport.abort()
                    self._writers.discard(one)
                self._tasks.discard(asyncio.current_task())

        return await asyncio.start_server(joined, "127.0.0.1", 0)

    async def _pass(self, reader, writer):
        while piece := await reader.read(BUFFER_BYTES):
            if self.cut_after_bytes is not None:
                self.cut_after_bytes -= len(piece)
                if self.cut_after_bytes <= 0:
                    self.cut_after_bytes = None
                    self._abort()
                    return
            writer.write(piece)
            await writer.drain()
            self.count_bytes += len(piece)
        writer.write_eof()

    def _abort(self):
        for one in list(self._writers):
            one.transport.abort()

    def cut(self):
        """Hang up on everybody, now."""
        self._loop.call_soon_threadsafe(self._abort)

    def close(self):
        async def end():
            for one in self._servers:
                one.close()
            self._abort()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
