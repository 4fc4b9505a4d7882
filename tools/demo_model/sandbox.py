"""Runs untrusted answers against their assertions.

Each program runs in its own `python3 -I -S` process: no network where the kernel allows that, no environment, an empty
working folder, limits on processor time, memory, open files and file size, a short list of builtins and of importable
modules, and a wall-clock limit after which its whole process group is killed.  This keeps a small model's mistakes
harmless; it is no barrier against a determined attacker.
"""
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

WALL_SECONDS = 5.0
RUNNER = r"""
import builtins, ctypes, resource, sys
program = sys.stdin.buffer.read().decode()
MODULES = {"math", "re", "string", "itertools", "collections", "functools"}
for name in MODULES:
    __import__(name)  # now: later no file can be opened
real_import = __import__
def safe_import(name, *args, **kwargs):
    if name not in MODULES:
        raise ImportError(name + " is not available")
    return real_import(name, *args, **kwargs)
HIDDEN = {"open", "eval", "exec", "compile", "input", "breakpoint", "globals", "vars", "help", "exit", "quit"}
scope = {"__name__": "answer", "__builtins__": {k: v for k, v in vars(builtins).items() if k not in HIDDEN}}
scope["__builtins__"]["__import__"] = safe_import
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)  # where the kernel allows it
for limit, value in ((resource.RLIMIT_CPU, 3), (resource.RLIMIT_AS, 256 << 20), (resource.RLIMIT_FSIZE, 0),
                     (resource.RLIMIT_NOFILE, 3), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (value, value))
try:
    exec(compile(program, "answer", "exec"), scope)
except BaseException as error:  # also SystemExit: only reaching the end counts
    sys.stderr.write(type(error).__name__)
    sys.stderr.flush()
    sys.exit(1)
"""


@dataclass(frozen=True)
class Outcome:
    """Whether every assertion held, and if not why: an exception's name, "Timeout" or "Killed"."""
    passed: bool
    reason: str


def run_program(program, wall_seconds=WALL_SECONDS):
    """Runs a program to its end."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, cwd=folder, env={}, start_new_session=True)
        try:
            _, error = process.communicate(program.encode("utf-8", "surrogatepass"), timeout=wall_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Outcome(False, "Timeout")
    if process.returncode == 0:
        return Outcome(True, "Passed")
    return Outcome(False, error.decode(errors="replace")[-80:] if process.returncode > 0 else "Killed")


def check(problem, answer, wall_seconds=WALL_SECONDS):
    """Runs a problem's prompt, the answer and the problem's assertions as one program."""
    return run_program(f"{problem['prompt']}\n{answer}\n{problem['test']}", wall_seconds)
