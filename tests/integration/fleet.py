"""Worker groups and coordinators as real processes, whose parts a test can kill, pause, cut off and start again."""
import atexit
import functools
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time

from clients import Load
from cluster import BUILD, COORDINATOR, WORKER, Process, free_port, get, random_checkpoint, wait_for
from history import Page, answer_of, key_of, not_idle, unstreamed, violations, wrong_counters

FAILPOINTS_WORKER = BUILD / "worker/quicksilver-worker-failpoints"
FULL = os.environ.get("QUICKSILVER_FULL") == "1"  # As many repetitions as reliability asks for, out of CI.

PROMPTS = ['def solution(numbers):\n    """Return the squares of numbers."""',
           'def keep_even(numbers):\n    """Keep only the elements of numbers that are even."""',
           'def solution(numbers):\n    """أعد عدد العناصر في numbers الأكبر من 10."""',
           'def run(values):\n    """Return the sum of values."""']
# One commit a step, to the last token: random weights hardly ever stop.
SLOW = {"max_tokens": 256, "temperature": 0.8, "quicksilver": {"policy": "sequential"}}


@functools.cache
def small_model():
    """Fast and talkative: its answers are long where the demo model's end after a line."""
    folder = tempfile.TemporaryDirectory(prefix="quicksilver-model-")
    atexit.register(folder.cleanup)
    return random_checkpoint(pathlib.Path(folder.name) / "small", "--family=sdar", "--hidden=128", "--layers=2", "--heads=4",
                             "--kv-heads=4", "--head-size=32", "--mlp=256", "--positions=1024", "--seed=11")


def chat(prompt=PROMPTS[0], **fields):
    return {"messages": [{"role": "user", "content": prompt}], **fields}


def streamed(body):
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


def mixed_bodies(count, **fields):
    """Streaming and not, greedy and sampled, one choice and four, with stop strings and without."""
    kinds = [{"temperature": 0}, {"n": 4}, {"stop": ["q", "return 7"]}, {}]
    bodies = []
    for i in range(count):
        body = chat(PROMPTS[i // 2 % len(PROMPTS)], **{**SLOW, "seed": 100 + i // 2 % 4, **kinds[i // 2 % 4], **fields})
        bodies.append(streamed(body) if i % 2 else body)
    return bodies


class Part:
    """A program with fixed addresses that can be started again. `host`: a hosts.Host, or None for this machine;
    `wrapper`: a command that runs the program."""

    def __init__(self, name, host=None, wrapper=()):
        self.name = name
        self.host = host
        self.wrapper = list(wrapper)
        self.address = host.address if host else "127.0.0.1"
        self.metrics_port = free_port()
        self.process = None

    def launch(self, *command, environment=None):
        prefix = self.host.enter if self.host else []
        self.process = Process(self.name, *prefix, *self.wrapper, *command, environment=environment)

    @property
    def pid(self):
        return self.process.process.pid

    @property
    def pages(self):
        return f"http://{self.address}:{self.metrics_port}"

    def page(self):
        status, text = get(self.pages + "/metrics")
        if status != 200:
            raise ConnectionError(f"{self.name} shows no metrics: {status} {text}")
        return Page(text)

    def alive(self):
        return self.process.process.poll() is None

    def send(self, number):
        self.process.process.send_signal(number)

    def kill(self):
        self.send(signal.SIGKILL)
        self.process.process.wait()

    def text(self):
        return self.process.text()


class Group(Part):
    def __init__(self, name, ranks=1, flags=(), failpoints="", host=None, model=None, environment=None,
                 port=None, wrapper=()):
        super().__init__(name, host, wrapper)
        self.ranks, self.flags, self.failpoints, self.environment = ranks, flags, failpoints, environment
        self.model = model or small_model()
        self.port = port or free_port()
        self.start()

    def start(self):
        environment = {**(self.environment or {}), **({"QUICKSILVER_FAILPOINTS": self.failpoints} if self.failpoints else {})}
        self.launch(FAILPOINTS_WORKER if self.failpoints else WORKER, f"--model={self.model}", f"--listen={self.address}:{self.port}",
                    f"--metrics-listen={self.address}:{self.metrics_port}", f"--tensor-parallel-size={self.ranks}",
                    *([] if any("--threads" in flag for flag in self.flags) else ["--threads=1"]), *self.flags,
                    environment=environment)

    @property
    def endpoint(self):
        return f"{self.address}:{self.port}"

    def rank_pids(self):
        return self.process.children()

    def signal_rank(self, rank, number):
        pid = self.rank_pids()[rank]
        os.kill(pid, number)
        return pid

    def ready(self):
        return get(self.pages + "/health/ready")[0] == 200

    def epoch(self):
        return self.page().sum("quicksilver_group_epoch")


class Coordinator(Part):
    def __init__(self, name, workers, flags=(), host=None, model=None, environment=None, wrapper=()):
        super().__init__(name, host, wrapper)
        self.workers, self.flags, self.environment = workers, flags, environment
        self.model = model or small_model()
        self.http, self.grpc = free_port(), free_port()
        self.start()

    def start(self):
        self.launch(COORDINATOR, f"--model={self.model}", f"--workers={','.join(self.workers)}",
                    f"--http-listen={self.address}:{self.http}", f"--grpc-listen={self.address}:{self.grpc}",
                    f"--metrics-listen={self.address}:{self.metrics_port}",
                    *([] if any("lame-duck" in flag for flag in self.flags) else ["--lame-duck-seconds=0"]), *self.flags,
                    environment=self.environment)

    @property
    def api(self):
        return (self.address, self.http)

    @property
    def base(self):
        return f"http://{self.address}:{self.http}"

    def ready(self):
        return get(self.base + "/health/ready")[0] == 200

    def groups_up(self):
        return self.page().sum("quicksilver_worker_up")


class Fleet:
    """`groups`: keyword arguments of each Group; `coordinators`: of each Coordinator."""

    def __init__(self, groups=({}, {}), coordinators=({},), ready=True, worker_addresses=None):
        self.want_ready = ready
        self.parts = []
        self.groups = [self.add(Group(f"group{i}", **fields)) for i, fields in enumerate(groups)]
        workers = worker_addresses(self) if worker_addresses else [g.endpoint for g in self.groups]
        self.coordinators = [self.add(Coordinator(f"coordinator{i}", **{"workers": workers, **fields}))
                             for i, fields in enumerate(coordinators)]
        self.references = {}

    def add(self, part):
        self.parts.append(part)
        return part

    def __enter__(self):
        try:
            if self.want_ready:
                self.wait_ready()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, *_):
        threads = [threading.Thread(target=part.process.stop) for part in reversed(self.parts)]
        for part in self.parts:  # What a test paused does not hear a request to end.
            for pid in [*part.process.children(), part.pid] if part.alive() else []:
                os.kill(pid, signal.SIGCONT)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if kind is not None:
            for part in self.parts:
                print(f"--- {part.name} (exit {part.process.process.returncode})\n{part.text()[-3000:]}", file=sys.stderr)
        return False

    def wait_ready(self, seconds=60):
        def ready():
            for part in self.parts:
                if not part.alive():
                    raise AssertionError(f"{part.name} ended with {part.process.process.returncode}")
            return all(c.ready() and c.groups_up() == len(self.groups) for c in self.coordinators)

        wait_for(ready, "all groups ready at all coordinators", seconds)

    @property
    def api(self):
        return self.coordinators[0].api

    def model_name(self):
        return json.loads(get(self.coordinators[0].base + "/v1/models")[1])["data"][0]["id"]

    def named(self, bodies):
        model = self.model_name()
        return [{"model": model, **body} for body in bodies]

    def reference(self, bodies):
        """Answers of an undisturbed run, one request of each kind at a time on each group's first chance."""
        distinct = {key_of(b): unstreamed(b) for b in bodies}
        before = self.readings()
        with Load() as load:
            load.closed_loop([self.api], [b for k, b in distinct.items() if k not in self.references], clients=2)
            for outcome in load.finish():
                self.references[key_of(outcome.body)] = answer_of(outcome)
        self.settled_counters(load.outcomes, before)
        return self.references

    def ask(self, body, client=None):
        before = self.readings()
        with Load() as load:
            load.send(self.api, self.named([body]), client)
            load.finish()
        self.settled_counters(load.outcomes, before)
        return load.outcomes[0]

    def settled_counters(self, outcomes, before, exact=True):
        """What is wrong with them once the servers had time to count what clients have seen already."""
        wrong = []
        deadline = time.monotonic() + 3
        while (wrong := list(wrong_counters(outcomes, before, self.readings(), exact))) and time.monotonic() < deadline:
            time.sleep(0.02)
        return wrong

    def readings(self):
        return [c.page() for c in self.coordinators if c.alive()]

    def wait_idle(self, seconds=15):
        """Every gauge at rest, every KV page free, on every part that lives."""
        def problems():
            found = []
            for part in self.parts:
                try:
                    found += [f"{part.name}: {line}" for line in not_idle([part.page()])] if part.alive() else []
                except ConnectionError as error:  # Its ranks are being started again.
                    found.append(str(error))
            return found

        try:
            wait_for(lambda: not problems(), "idle", seconds)
        except AssertionError:
            raise AssertionError(f"not idle after {seconds} s: {problems()}") from None

    def judge(self, test, outcomes, before=None, exact=True, references=True):
        """All that holds of every scenario. Fails `test` with each broken promise."""
        self.wait_idle()
        found = violations(outcomes, self.references if references else None)
        if before is not None:
            found += self.settled_counters(outcomes, before, exact)
        found += [f"{p.name} ended with {p.process.process.returncode}" for p in self.parts if not p.alive()]
        test.assertEqual(found, [], "\n".join(found[:20]))
