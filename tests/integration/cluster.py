"""Real processes for tests: a coordinator and worker groups on free loopback ports, and small clients for their pages."""
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(os.environ.get("QUICKSILVER_ROOT", pathlib.Path(__file__).parents[2])).resolve()
BUILD = pathlib.Path(os.environ.get("QUICKSILVER_BUILD", ROOT / "build/release")).resolve()
DEMO = ROOT / "models/demo"
WORKER = BUILD / "worker/quicksilver-worker"
COORDINATOR = BUILD / "coordinator/quicksilver-coordinator"
CLI = BUILD / "tools/quicksilver"
# Bounds of time are stretched by this where the build is slow (sanitizers).
PATIENCE = float(os.environ.get("QUICKSILVER_PATIENCE", 1))
READY_SECONDS = 120  # Sanitizer builds on two cores are slow.


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url, timeout=5):
    """(status, body text) of a GET, whatever the status; (0, reason) when nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (urllib.error.URLError, OSError) as error:
        return 0, str(error)


def wait_for(condition, what, seconds=READY_SECONDS):
    deadline = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def random_checkpoint(folder, *flags):
    """A model with random weights and the demo model's tokenizer."""
    demo = json.loads((DEMO / "config.json").read_text())
    subprocess.run([BUILD / "tools/random_checkpoint", folder, f"--vocabulary={demo['vocab_size']}", *flags], check=True)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        config["eos_token_id"] = demo["eos_token_id"]
        if name == "config.json":
            config["mask_token_id"] = demo["mask_token_id"]
        (folder / name).write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    return folder


class Process:
    """One program of ours; its standard error goes to a file that failures can quote."""

    def __init__(self, name, *arguments, environment=None):
        self.name = name
        self.log = tempfile.NamedTemporaryFile("w+", prefix=f"quicksilver-{name}-", suffix=".log")
        self.process = subprocess.Popen([str(a) for a in arguments], stdout=self.log, stderr=self.log, cwd=ROOT,
                                        env={**os.environ, **(environment or {})})

    def text(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text(errors="replace")

    def children(self):
        """Process ids of the ranks that this launcher started, rank 0 first."""
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                stat = (entry / "stat").read_text()
                command = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if int(stat.rsplit(")", 1)[1].split()[1]) == self.process.pid:
                rank = next((a.split("=")[1] for a in command if a.startswith("--rank=")), None)
                if rank is not None:
                    found.append((int(rank), int(entry.name)))
        return [pid for _, pid in sorted(found)]

    def stop(self, seconds=30):
        """SIGTERM, then the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


class Cluster:
    """A coordinator and one worker group of `ranks` ranks."""

    def __init__(self, ranks=2, model=DEMO, worker_flags=(), coordinator_flags=(), worker=WORKER, environment=None):
        self.http, self.grpc, self.metrics_port = free_port(), free_port(), free_port()
        self.worker_port, self.worker_metrics_port = free_port(), free_port()
        self.model = model
        self.worker = Process("worker", worker, f"--model={model}", f"--tensor-parallel-size={ranks}",
                              f"--listen=127.0.0.1:{self.worker_port}",
                              f"--metrics-listen=127.0.0.1:{self.worker_metrics_port}", *worker_flags, environment=environment)
        self.coordinator = Process("coordinator", COORDINATOR, f"--model={model}",
                                   f"--workers=127.0.0.1:{self.worker_port}", f"--http-listen=127.0.0.1:{self.http}",
                                   f"--grpc-listen=127.0.0.1:{self.grpc}",
                                   f"--metrics-listen=127.0.0.1:{self.metrics_port}", "--lame-duck-seconds=0",
                                   *coordinator_flags)

    def __enter__(self):
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, *_):
        codes = self.coordinator.stop(), self.worker.stop()
        if kind is not None:
            for process in (self.coordinator, self.worker):
                print(f"--- {process.name} (exit {process.process.returncode})\n{process.text()[-4000:]}", file=sys.stderr)
        return False if kind else codes and None

    @property
    def base(self):
        return f"http://127.0.0.1:{self.http}"

    def ready(self):
        return get(self.base + "/health/ready")[0] == 200

    def wait_ready(self, seconds=READY_SECONDS):
        def ready():
            for process in (self.worker, self.coordinator):
                if process.process.poll() is not None:
                    raise AssertionError(f"{process.name} ended with {process.process.returncode}")
            return self.ready()

        wait_for(ready, "ready", seconds)

    def post(self, path, body, timeout=60):
        """(status, decoded JSON, headers) of a POST of `body` (bytes, or an object sent as JSON)."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, json.loads(reply.read()), reply.headers
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), error.headers

    def chat(self, text, **fields):
        status, body, _ = self.post("/v1/chat/completions", {
            "model": self.model_name(), "temperature": 0, "messages": [{"role": "user", "content": text}], **fields})
        if status != 200:
            raise AssertionError(f"{status}: {body}")
        return body

    def model_name(self):
        return json.loads(get(self.base + "/v1/models")[1])["data"][0]["id"]

    def worker_metric(self, name):
        return metric(f"http://127.0.0.1:{self.worker_metrics_port}/metrics", name)

    def coordinator_metric(self, name):
        return metric(f"http://127.0.0.1:{self.metrics_port}/metrics", name)


def metric(url, name):
    """The sum of all series of a metric, None when the page has no such name."""
    _, text = get(url)
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.M)
    return sum(float(v) for v in values) if values else None
