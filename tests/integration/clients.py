"""Many HTTP clients at once, each of which logs what it saw as a history.Outcome. Raw sockets, so that an end of a
connection is seen as what it is; an event loop in a thread of its own, so that a test can break things meanwhile."""
import asyncio
import json
import socket
import threading
import time

from cluster import PATIENCE
from history import COMPLETE, CUT, ERROR, LEFT, Outcome

PATH = "/v1/chat/completions"
EXCHANGE_SECONDS = 120 * PATIENCE


class Client:
    """How one request behaves. `leave(outcome)` true: it resets the connection. `read_pause`: seconds between two reads
    of `read_bytes`; it looks at nothing then."""

    def __init__(self, leave=None, read_pause=0.0, read_bytes=65536, headers=None, receive_buffer=None):
        self.leave = leave
        self.read_pause = read_pause
        self.read_bytes = read_bytes
        self.headers = headers or {}
        self.receive_buffer = receive_buffer


class Left(Exception):
    pass


async def chunks(reader, headers, client, outcome):
    """The body's parts as they come; an incomplete body raises IncompleteReadError."""
    async def some(count):
        if client.leave and client.leave(outcome):
            raise Left
        data = await reader.read(min(count, client.read_bytes))
        if not data:
            raise asyncio.IncompleteReadError(b"", count)
        return data

    if headers.get("transfer-encoding") != "chunked":
        left = int(headers.get("content-length", "0"))
        while left:
            data = await some(left)
            left -= len(data)
            yield data
        return
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        while size:
            data = await some(size)
            size -= len(data)
            yield data
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")


def take_chunk(chunk, outcome):
    if outcome.done:
        outcome.after_finish += 1
        return
    if "error" in chunk:
        outcome.error = chunk["error"]
        return
    outcome.usage = chunk.get("usage") or outcome.usage
    now = time.monotonic()
    for choice in chunk.get("choices", []):
        text = (choice.get("delta") or choice.get("message") or {}).get("content")
        if choice["index"] in dict(outcome.finished):
            outcome.after_finish += 1
        if text:
            outcome.deltas.append((now, choice["index"], text))
        if choice.get("finish_reason"):
            outcome.finished.append((choice["index"], choice["finish_reason"]))


async def read_answer(reader, headers, client, outcome):
    outcome.done = False
    buffered = b""
    async for data in chunks(reader, headers, client, outcome):
        buffered += data
        if not headers.get("content-type", "").startswith("text/event-stream"):
            continue
        while b"\n\n" in buffered:
            event, buffered = buffered.split(b"\n\n", 1)
            for line in event.split(b"\n"):
                if line == b"data: [DONE]":
                    outcome.done = True
                elif line.startswith(b"data: "):
                    take_chunk(json.loads(line[6:]), outcome)
    if headers.get("content-type", "").startswith("text/event-stream"):
        outcome.ends.append(ERROR if outcome.error else COMPLETE)
        if not outcome.done:
            outcome.ends.append("stream without [DONE]")
        return
    body = json.loads(buffered)
    if outcome.status == 200:
        take_chunk(body, outcome)
    else:
        outcome.error = body["error"]
    outcome.ends.append(ERROR if outcome.error else COMPLETE)


async def trickle(sock, client, outcome):
    """Takes a byte now and then and understands none; ends when the server breaks the connection."""
    loop = asyncio.get_running_loop()
    while not (client.leave and client.leave(outcome)):
        # A reset is hidden behind what was received before it.
        if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "reset")
        if not await loop.sock_recv(sock, client.read_bytes):
            raise asyncio.IncompleteReadError(b"", 1)
        outcome.first_byte = outcome.first_byte or time.monotonic()
        await asyncio.sleep(client.read_pause)
    raise Left


async def exchange(host, port, outcome, client):
    body = json.dumps(outcome.body).encode()
    sock = socket.socket(socket.AF_INET)
    if client.receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, client.receive_buffer)
    sock.setblocking(False)
    writer = None
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
        extra = "".join(f"{name}: {value}\r\n" for name, value in client.headers.items())
        request = (f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{extra}"
                   f"Content-Length: {len(body)}\r\n\r\n").encode() + body
        await asyncio.get_running_loop().sock_sendall(sock, request)
        if client.read_pause:
            await trickle(sock, client, outcome)
        reader, writer = await asyncio.open_connection(sock=sock)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        outcome.first_byte = time.monotonic()
        outcome.status = int(head[0].split()[1])
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        outcome.headers = headers
        await read_answer(reader, headers, client, outcome)
    except Left:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        outcome.ends.append(LEFT)
    except (asyncio.IncompleteReadError, OSError) as error:
        outcome.ends.append(CUT)
        outcome.note = repr(error)
    finally:
        if writer:
            writer.transport.abort()
        sock.close()


class Load:
    """Runs requests in the background. `outcomes` holds those that were begun, in order."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.outcomes = []
        self.tasks = []
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        async def end():  # A test that failed has left some.
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    async def one(self, address, body, client=None, tenant=""):
        client = client or Client()
        outcome = Outcome(body=body, server=f"{address[0]}:{address[1]}", tenant=tenant, sent=time.monotonic())
        self.outcomes.append(outcome)
        try:
            await asyncio.wait_for(exchange(*address, outcome, client), EXCHANGE_SECONDS)
        except asyncio.TimeoutError:
            outcome.note = f"no end within {EXCHANGE_SECONDS} s"
        outcome.ended_at = time.monotonic()
        return outcome

    def go(self, coroutine):
        self.tasks.append(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def send(self, address, bodies, client=None, tenant=""):
        """All at once, a connection each."""
        for body in bodies:
            self.go(self.one(address, body, client, tenant))

    def closed_loop(self, addresses, bodies, clients, until=None):
        """`clients` ask one request after the other until all bodies are asked, or in turn until `until()`."""
        queue = list(enumerate(bodies))
        asked = iter(queue) if until is None else self.repeat(bodies, until)

        async def client():
            for number, body in asked:
                await self.one(addresses[number % len(addresses)], body)

        for _ in range(clients):
            self.go(client())

    @staticmethod
    def repeat(bodies, until):
        number = 0
        while not until():
            yield number, bodies[number % len(bodies)]
            number += 1

    def open_loop(self, address, bodies, per_second, client=None, tenant=""):
        """At even intervals, whatever becomes of those before."""
        async def run():
            start = time.monotonic()
            running = []
            for number, body in enumerate(bodies):
                await asyncio.sleep(max(0.0, start + number / per_second - time.monotonic()))
                running.append(asyncio.create_task(self.one(address, body, client, tenant)))
            await asyncio.gather(*running)

        self.go(run())

    def running(self):
        """Requests that have got text and not ended."""
        return [o for o in self.outcomes if o.deltas and o.ended_at is None]

    def finish(self, seconds=EXCHANGE_SECONDS + 10):
        """Waits for everything; the outcomes, in the order in which they were sent."""
        deadline = time.monotonic() + seconds
        for task in self.tasks:
            task.result(max(0.1, deadline - time.monotonic()))
        self.tasks = []
        return self.outcomes
