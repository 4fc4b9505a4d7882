"""Runs programs with a time limit each, shows that they are alive, and keeps what they print."""
import os
import selectors
import signal
import subprocess
import sys
import time

KEPT_LINES = 20000
ALIVE_SECONDS = 20


class Finished:
    """code: of the program, or None when its time was up. lines: of its standard output."""

    def __init__(self, code, lines, seconds):
        self.code, self.lines, self.seconds = code, lines, seconds

    @property
    def timed_out(self):
        return self.code is None


class Runner:
    def __init__(self, log, time_limit):
        self.log = open(log, "w", encoding="utf-8")
        self.ends = time.monotonic() + time_limit if time_limit else None

    def say(self, text):
        print(text, file=sys.stderr, flush=True)
        self.log.write(text + "\n")
        self.log.flush()

    def left(self, limit):
        return limit if self.ends is None else max(1.0, min(limit, self.ends - time.monotonic()))

    def run(self, command, limit, environment=None, watch=None):
        """Both outputs go to the log, standard output also to the result; watch(line) may return what to show of it."""
        command = [str(part) for part in command]
        self.log.write("$ " + " ".join(command) + "\n")
        began = time.monotonic()
        deadline = began + self.left(limit)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                   env=environment, start_new_session=True)
        lines, spoke, pieces = [], began, {process.stdout: b"", process.stderr: b""}
        with selectors.DefaultSelector() as selector:
            for stream in pieces:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map() and time.monotonic() < deadline:
                for key, _ in selector.select(timeout=0.5):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    *whole, pieces[key.fileobj] = (pieces[key.fileobj] + data).split(b"\n")
                    for line in whole if data else [pieces.pop(key.fileobj)]:
                        text = line.decode("utf-8", "replace")
                        self.log.write(text + "\n")
                        if key.fileobj is process.stdout and len(lines) < KEPT_LINES:
                            lines.append(text)
                        if watch and (shown := watch(text)):
                            self.say("    " + shown)
                            spoke = time.monotonic()
                if time.monotonic() - spoke > ALIVE_SECONDS:
                    spoke = time.monotonic()
                    self.say(f"    … {os.path.basename(command[0])}, {spoke - began:.0f}s")
        code = self.end(process, deadline)
        self.log.flush()
        return Finished(code, lines, time.monotonic() - began)

    @staticmethod
    def end(process, deadline):
        """The exit code; None after killing what outlived its time, with all that it started."""
        try:
            return process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        finally:
            process.stdout.close()
            process.stderr.close()
