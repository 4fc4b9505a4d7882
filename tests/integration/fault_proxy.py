"""A TCP proxy that can slow a connection down, drip it, freeze it half-open or break it."""
import asyncio
import socket
import threading

from cluster import free_port


class FaultProxy:
    """Forwards 127.0.0.1:port to `target`. The faults hold for connections that are there and for new ones."""

    def __init__(self, target):
        self.target = target
        self.port = free_port()
        self.delay = 0.0  # Seconds before each part is passed on.
        self.drip = 0  # Bytes at a time, 10 ms apart; 0: as they come.
        self.frozen = set()  # "up" (to the target), "down": what comes is kept, and the connections stay open.
        self.writers = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self.accept, "127.0.0.1", self.port), self.loop).result()

    @property
    def endpoint(self):
        return f"127.0.0.1:{self.port}"

    async def accept(self, reader, writer):
        try:
            up_reader, up_writer = await asyncio.open_connection(*self.target)
        except OSError:
            return writer.close()
        self.writers |= {writer, up_writer}
        await asyncio.gather(self.pump("up", reader, up_writer), self.pump("down", up_reader, writer))
        self.writers -= {writer, up_writer}

    async def pump(self, way, reader, writer):
        try:
            while data := await reader.read(65536):
                while way in self.frozen:
                    await asyncio.sleep(0.02)
                if self.delay:
                    await asyncio.sleep(self.delay)
                for i in range(0, len(data), self.drip or len(data)):
                    writer.write(data[i:i + (self.drip or len(data))])
                    if self.drip:
                        await asyncio.sleep(0.01)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    def reset(self):
        """Breaks every connection."""
        def cut():
            for writer in self.writers:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                writer.transport.abort()

        self.loop.call_soon_threadsafe(cut)

    def close(self):
        self.frozen = set()
        self.reset()
        self.loop.call_soon_threadsafe(self.server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
