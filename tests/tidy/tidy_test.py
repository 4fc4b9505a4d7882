#!/usr/bin/env python3
"""Holds the tree to its own rules: sizes, banned calls, who may include whom, nothing left out of the build.

usage: tidy_test.py ROOT BUILD    (BUILD holds compile_commands.json)
"""
import ast
import json
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 2 else pathlib.Path(__file__).parents[2]).resolve()
BUILD = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "build/release").resolve()

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
SOURCE_ENDINGS = {".h", ".cc", ".cu", ".cuh", ".py", ".sh", ".cmake", ".proto"}
CPP_ENDINGS = {".h", ".cc", ".cu", ".cuh"}

# (pattern, where it is allowed, what to use instead)
BANNED = [
    # main() alone: gRPC's own absl locks abort on cycles unless told not to.
    (r"absl::Mutex|absl/synchronization", r"(coordinator|worker)/main\.cc$", "common/mutex.h"),
    (r"std::(recursive_|shared_|timed_)?mutex\b", r"common/mutex\.h$", "common/mutex.h"),
    (r"std::condition_variable", r"common/mutex\.h$", "CondVar of common/mutex.h"),
    (r"\bgetenv\(", r"common/options\.cc$|^tests/|^tools/", "an option (common/options.h)"),
    # A blocked getaddrinfo() cannot be ended; its thread owns all that it touches.
    (r"\.detach\(\)", r"^coordinator/cluster/discovery\.cc$", "a joined std::thread"),
    (r"\b(sprintf|vsprintf|strcpy|strcat|gets|strtok|alloca)\(", r"$^", "snprintf, std::string, absl::StrSplit"),
    (r"\b(rand|srand)\(", r"$^", "common/philox.h"),
    (r"std::random_device", r"coordinator/", "common/philox.h"),
    (r"\bstd::regex\b", r"^tests/", "PCRE2 with limits"),
    (r"\bstd::(stoi|stol|stoll|stof|stod|stoul|atoi)\(|\batoi\(", r"^tests/", "absl::SimpleAtoi"),
    (r"system_clock", r"$^", "absl::Now() for the date, MonotonicNow() for durations"),
    (r"\bassert\(", r"^tests/", "CHECK of common/check.h"),
    (r"prometheus/exposer\.h", r"$^", "RenderMetrics of common/metrics.h"),
    (r"cudaMallocManaged", r"$^", "Ops::Allocate"),
]

PURE = [r"coordinator/core/", r"worker/decoding/", r"worker/engine/(fair_shares|page_pool|prefix_cache|scheduler|step_time)"]
IMPURE_INCLUDE = re.compile(
    r"<(thread|mutex|condition_variable|atomic|future|chrono|sys/socket\.h|unistd\.h)>|common/(mutex|clock|log)\.h"
    r"|asio|grpc|\.pb\.h|cuda|absl/time/clock")

# folder -> what its sources may not include
FORBIDDEN_INCLUDES = [
    (r"^coordinator/", r'"worker/|"kernels/', "the coordinator knows no worker"),
    (r"^worker/", r'"coordinator/', "the worker knows no coordinator"),
    (r"^kernels/", r'"(worker|coordinator|proto|quicksilver)/|"common/(?!philox|portable_log|check|status_macros)', "kernels know no service"),
    (r"^common/", r'"(worker|coordinator|kernels)/', "common is at the bottom"),
    (r"^(?!kernels/cuda/|worker/collectives/cuda/|tests/|tools/).*", r"[<\"](cuda|cublas|nccl)", "CUDA stays in kernels/cuda and worker/collectives/cuda"),
    (r"^(?!tools/|tests/|.*(options\.(h|cc)|main\.cc)$).*", r"<CLI/", "only options and main read flags"),
]


def tracked():
    out = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                         capture_output=True, text=True).stdout
    return [ROOT / line for line in out.splitlines() if (ROOT / line).is_file()]


FILES = tracked()


def name(path):
    return path.relative_to(ROOT).as_posix()


def sources(endings):
    return [p for p in FILES if p.suffix in endings]


def strip_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.S)


def long_cpp_functions(text):
    """Yields (line, length). Relies on clang-format: a body's closing brace stands at the indentation of its head."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        head = re.match(r"( {0,2})[^\s#}/].*\{$", line)
        if not head or re.match(r"\s*(namespace|class|struct|enum|union|extern|switch|for|if|while|else|do)\b", line):
            continue
        if "(" not in line and ")" not in line:
            continue
        for end in range(start + 1, len(lines)):
            if re.match(head.group(1) + r"\}", lines[end]):
                if end - start + 1 > FUNCTION_LINES_MAX:
                    yield start + 1, end - start + 1
                break


class Tidy(unittest.TestCase):
    def report(self, problems):
        self.assertFalse(problems, "\n" + "\n".join(problems))

    def test_files_and_functions_are_short(self):
        problems = []
        for path in sources(SOURCE_ENDINGS):
            text = path.read_text(encoding="utf-8")
            count = len(text.splitlines())
            if count > FILE_LINES_MAX:
                problems.append(f"{name(path)}: {count} lines, at most {FILE_LINES_MAX}: split it by responsibility")
            if path.suffix in CPP_ENDINGS:
                for line, length in long_cpp_functions(text):
                    problems.append(f"{name(path)}:{line}: a function of {length} lines, at most {FUNCTION_LINES_MAX}")
            if path.suffix == ".py":
                for node in ast.walk(ast.parse(text)):
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        length = node.end_lineno - node.lineno + 1
                        if length > FUNCTION_LINES_MAX:
                            problems.append(f"{name(path)}:{node.lineno}: a function of {length} lines")
        self.report(problems)

    def test_banned_calls_are_not_used(self):
        problems = []
        for path in sources(CPP_ENDINGS):
            for number, line in enumerate(strip_comments(path.read_text(encoding="utf-8")).splitlines(), 1):
                for pattern, allowed, instead in BANNED:
                    if re.search(pattern, line) and not re.search(allowed, name(path)):
                        problems.append(f"{name(path)}:{number}: {pattern} is banned: use {instead}")
        self.report(problems)

    def test_includes_follow_the_architecture(self):
        problems = []
        for path in sources(CPP_ENDINGS):
            pure = any(re.match(p, name(path)) for p in PURE)
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if not line.startswith("#include"):
                    continue
                if pure and IMPURE_INCLUDE.search(line):
                    problems.append(f"{name(path)}:{number}: {line}: this folder is pure")
                for folder, include, why in FORBIDDEN_INCLUDES:
                    if re.match(folder, name(path)) and re.search(include, line):
                        problems.append(f"{name(path)}:{number}: {line}: {why}")
        self.report(problems)

    def test_every_source_is_in_a_target(self):
        commands = json.loads((BUILD / "compile_commands.json").read_text())
        built = {pathlib.Path(c["file"]).resolve() for c in commands}
        with_cuda = any(p.suffix == ".cu" for p in built)
        problems = []
        for path in sources({".cc", ".cu"}):
            if path.name.endswith("_fuzz.cc") or (path.suffix == ".cu" and not with_cuda):
                listed = path.name in "".join(p.read_text() for p in FILES if p.name == "CMakeLists.txt")
                if not listed:
                    problems.append(f"{name(path)} is in no CMakeLists.txt")
            elif path.resolve() not in built and not (not with_cuda and re.search("/cuda/|/fake_nccl/", name(path))):
                problems.append(f"{name(path)} is compiled by no target")
        self.report(problems)

    def test_every_test_is_in_ctest(self):
        listing = subprocess.run(["ctest", "--show-only=json-v1"], cwd=BUILD, check=True, capture_output=True,
                                 text=True).stdout
        commands = json.dumps(json.loads(listing)["tests"])
        commands += "".join(p.read_text() for p in FILES if p.suffix == ".sh" and p.name in commands)
        problems = []
        for path in FILES:
            if not name(path).startswith("tests/") or not re.search(r"_test\.(py|sh)$", path.name):
                continue
            if path.name not in commands:
                problems.append(f"{name(path)} is run by no ctest")
        self.report(problems)

    def test_headers_are_included_by_someone(self):
        text = "".join(p.read_text(encoding="utf-8") for p in sources(CPP_ENDINGS))
        self.report([f"{name(p)} is included by nobody" for p in sources({".h", ".cuh"}) if f'"{name(p)}"' not in text])

    def test_nothing_large_or_generated_is_tracked(self):
        problems = [f"{name(p)}: {p.stat().st_size} bytes" for p in FILES
                    if p.stat().st_size > 2 * 2**20 and not name(p).startswith("models/demo")]
        problems += [f"{name(p)} is generated" for p in FILES if re.search(r"\.pb\.(h|cc)$|\.pyc$", p.name)]
        demo = sum(p.stat().st_size for p in FILES if name(p).startswith("models/demo"))
        if demo > 32 * 2**20:
            problems.append(f"models/demo: {demo} bytes, at most 32 MiB")
        self.report(problems)

    def test_function_finder_sees_a_long_function(self):
        body = "".join(f"  x += {i};\n" for i in range(80))
        self.assertEqual([n for _, n in long_cpp_functions("int F(int x) {\n" + body + "}\n")], [82])
        self.assertEqual(list(long_cpp_functions("class F {\n" + body + "}\n")), [])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
