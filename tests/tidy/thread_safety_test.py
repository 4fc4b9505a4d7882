#!/usr/bin/env python3
"""Checks the lock annotations: a syntax-only clang pass with -Wthread-safety -Werror over every source that sees common/mutex.h.

usage: thread_safety_test.py ROOT BUILD    (BUILD holds compile_commands.json)
"""
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(sys.argv[1]).resolve()
BUILD = pathlib.Path(sys.argv[2]).resolve()
KEPT = re.compile(r"^-(I|D|isystem|std)")


def sees_mutex(path, seen):
    """True when `path` reaches common/mutex.h through includes written from the root."""
    if path in seen or not path.is_file():
        return False
    seen.add(path)
    includes = re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.M)
    return "common/mutex.h" in includes or any(sees_mutex(ROOT / i, seen) for i in includes)


def clang_command(clang, entry):
    words = shlex.split(entry["command"])
    kept, take = [], False
    for word in words:
        if take or KEPT.match(word):
            kept.append(word)
        take = not take and word == "-isystem"
    return [clang, "-fsyntax-only", "-Wthread-safety", "-Werror", "-Wno-unknown-warning-option", *kept, entry["file"]]


def main():
    clang = shutil.which("clang++-14") or shutil.which("clang++")
    if clang is None:
        sys.exit("clang++ is missing: run tools/install_dependencies")
    entries = [e for e in json.loads((BUILD / "compile_commands.json").read_text())
               if e["file"].endswith(".cc") and "/build/" not in e["file"] and sees_mutex(pathlib.Path(e["file"]), set())]

    def check(entry):
        done = subprocess.run(clang_command(clang, entry), cwd=entry["directory"], capture_output=True, text=True)
        return entry["file"], done.returncode, done.stderr

    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, code, errors in pool.map(check, entries):
            if code != 0:
                failed += 1
                print(f"{file}\n{errors}")
    print(f"{len(entries)} sources that use locks checked, {failed} with faults")
    sys.exit(1 if failed or not entries else 0)


if __name__ == "__main__":
    main()
