"""The stages. Each returns {"verdict": "passed" | "failed" | "skipped", "summary": a line, …what it found}."""
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import shutil
import sys

# Cases that share loaded weights run in one process, and a process that dies takes no others along. Prefixes of names.
BENCH_GROUPS = [
    ["llada8b_bf16_1x32", "llada8b_bf16_64x32", "llada8b_bf16_canvas"],
    ["llada8b_bf16_fast"],
    ["llada8b_fp8"],
    ["sdar1.7b"],
    ["sdar8b"],
    ["candidates"],
    ["experts"],
    ["llada8b_bf16_tp2"],
]
# Loading a model takes seconds, trying out products for a new number of rows up to a second each.
BENCH_GROUP_SECONDS = 240
TORCH_SECONDS = 300
SANITIZER_ERROR = 99
# What a machine with one device may lack. Any other reason to skip is a stage that has not shown what it should.
EXPECTED_SKIP = re.compile(r"needs \d+ CUDA devices, has [1-9]|at most \d+ ranks")


@dataclasses.dataclass
class Context:
    options: object
    folder: pathlib.Path
    manifest: dict
    out: pathlib.Path
    facts: dict
    environment: dict
    results: list = dataclasses.field(default_factory=list)

    def found(self, stage):
        return next((result for result in self.results if result["stage"] == stage), {})


def verdict(failed):
    return "failed" if failed else "passed"


def check_device(runner, context):
    device = context.facts["device"]
    return {"verdict": "passed", "summary": ", ".join(f"{key} {value}" for key, value in device.items())}


def bench(context, *arguments):
    toy = ["--toy"] if context.options.toy else []
    return [context.folder / context.manifest["bench"], *toy, *arguments]


def rows_of(lines):
    return [json.loads(line) for line in lines if line.startswith("{")]


def check_ceilings(runner, context):
    done = runner.run(bench(context, "--ceilings-only"), 120, context.environment)
    ceilings = next((row for row in rows_of(done.lines) if row["kind"] == "ceilings"), None)
    if done.code != 0 or ceilings is None:
        return {"verdict": "failed", "summary": how_it_ended(done)}
    return {"verdict": "passed", "ceilings": ceilings,
            "summary": f"copy {ceilings['copy_gb_per_s']:.0f} GB/s, bf16 {ceilings['bf16_tflops']:.0f} TFLOP/s, "
                       f"fp8 {ceilings['fp8_tflops']:.0f} TFLOP/s"}


def how_it_ended(done):
    return f"stopped at its limit of {done.seconds:.0f}s" if done.timed_out else f"ended with {done.code}"


def google_test(runner, context, test, limit, prefix=(), shard=0, shards=1):
    """Counts of one program of tests, or of its share number `shard`, and the names of what failed."""
    counts = {"passed": 0, "failed": 0, "skipped": 0, "failures": [], "reasons": []}
    before = ""

    def watch(line):
        nonlocal before
        reason, before = before, line
        if found := re.match(r"\[ +(OK|FAILED|SKIPPED) +\] (\S+?),? ", line + " "):
            kind = {"OK": "passed", "FAILED": "failed", "SKIPPED": "skipped"}[found.group(1)]
            if "." not in found.group(2) or " ms" not in line:
                return None  # The summary repeats failures and skips, without a time.
            counts[kind] += 1
            if kind == "skipped" and not EXPECTED_SKIP.search(reason) and reason not in counts["reasons"]:
                counts["reasons"].append(reason)
            if kind == "failed":
                counts["failures"].append(found.group(2))
                return line
        return None

    environment = {**context.environment, "GTEST_TOTAL_SHARDS": str(shards), "GTEST_SHARD_INDEX": str(shard)}
    done = runner.run([*prefix, context.folder / test["program"]], limit, environment, watch)
    counts["name"], counts["seconds"] = test["name"], round(done.seconds, 1)
    counts["ended"] = "" if done.code == 0 else how_it_ended(done)
    counts["timed_out"], counts["code"] = done.timed_out, done.code
    return counts


def google_test_in_shards(runner, context, test, limit):
    """The same, by several processes at a time. What measures how soon a lost peer is noticed runs alone."""
    shards = 1 if test["name"].startswith(("ipc_", "nccl_")) else context.options.shards
    with concurrent.futures.ThreadPoolExecutor(shards) as pool:
        parts = list(pool.map(lambda shard: google_test(runner, context, test, limit, shard=shard, shards=shards),
                              range(shards)))
    whole = {kind: sum(part[kind] for part in parts) for kind in ("passed", "failed", "skipped")}
    whole.update(name=test["name"], failures=[name for part in parts for name in part["failures"]],
                 reasons=list(dict.fromkeys(reason for part in parts for reason in part["reasons"])),
                 seconds=max(part["seconds"] for part in parts),
                 ended=", ".join(dict.fromkeys(part["ended"] for part in parts if part["ended"])))
    return whole


def summary_of(programs):
    totals = {kind: sum(program[kind] for program in programs) for kind in ("passed", "failed", "skipped")}
    text = ", ".join(f"{count} {kind}" for kind, count in totals.items())
    ended = [f"{program['name']} {program['ended']}" for program in programs if program["ended"]]
    reasons = dict.fromkeys(f"skipped: {reason}" for program in programs for reason in program["reasons"])
    return totals, "; ".join([text, *ended, *reasons])


def run_tests(runner, context, golden):
    programs = []
    for test in context.manifest["tests"]:
        if ("golden" in test["name"]) == golden:
            runner.say(f"    {test['name']}")
            programs.append(google_test_in_shards(runner, context, test, test.get("limit_s", 300)))
    if not programs:
        return {"verdict": "skipped", "summary": "no such program"}
    totals, summary = summary_of(programs)
    bad = totals["failed"] or any(program["ended"] or program["reasons"] for program in programs)
    return {"verdict": verdict(bad), "summary": summary, "programs": programs, **totals}


def check_tests(runner, context):
    return run_tests(runner, context, golden=False)


def check_golden(runner, context):
    return run_tests(runner, context, golden=True)


def check_sanitize(runner, context):
    """memcheck and racecheck on the conformance suite, each as far as its time goes."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    suite = next((test for test in context.manifest["tests"] if test["name"] == context.manifest["conformance"]), None)
    if not pathlib.Path(tool).exists() or suite is None:
        return {"verdict": "skipped", "summary": "compute-sanitizer is not installed"}
    programs = []
    # Tests provoke errors of calls, which are theirs to judge.
    for check, *flags in (("memcheck", "--report-api-errors", "no"), ("racecheck",)):
        runner.say(f"    {check}")
        counts = google_test(runner, context, suite, context.options.sanitize_seconds,
                             prefix=[tool, "--tool", check, *flags, "--error-exitcode", SANITIZER_ERROR])
        counts["name"] = check
        if counts["timed_out"]:  # Findings come as they are made: what ran was clean, unless the log says otherwise.
            counts["ended"] = f"stopped after {counts['seconds']:.0f}s: the rest was not looked at"
        programs.append(counts)
    log = (context.out / "log.txt").read_text(errors="replace")
    findings = len(re.findall(r"^========= (?:Invalid|Error|Race|Warning|Program hit)", log, re.M))
    _, summary = summary_of(programs)
    bad = findings or any(program["failed"] or not (program["timed_out"] or program["code"] == 0) for program in programs)
    return {"verdict": verdict(bad), "summary": f"{findings} findings; {summary}", "programs": programs}


def group_cases(names):
    """The names in groups that run in one process each."""
    groups = [[name for name in names if any(name.startswith(prefix) for prefix in group)] for group in BENCH_GROUPS]
    rest = [name for name in names if not any(name in group for group in groups)]
    return [group for group in [*groups, rest] if group]


def check_bench(runner, context):
    listed = runner.run(bench(context, "--list"), 30, context.environment)
    wanted = [prefix for prefix in context.options.cases.split(",") if prefix]
    names = [name for name in listed.lines if not wanted or any(name.startswith(prefix) for prefix in wanted)]
    if listed.code != 0 or not names:
        return {"verdict": "failed", "summary": "no case to run"}
    ceilings = context.found("ceilings").get("ceilings")
    given = [f"--ceilings={ceilings['copy_gb_per_s']},{ceilings['bf16_tflops']},{ceilings['fp8_tflops']}"] if ceilings else []
    rows, ended = [], []
    for group in group_cases(names):
        arguments = ["--only", ",".join(group), f"--seconds={context.options.seconds}", *given]
        if context.options.breakdown:
            arguments.append("--breakdown")
        done = runner.run(bench(context, *arguments), BENCH_GROUP_SECONDS, context.environment,
                          watch=lambda line: line if re.match(r"\[\d+/\d+\]|  ", line) else None)
        rows += [row for row in rows_of(done.lines) if row["kind"] != "ceilings"]
        if done.code != 0:
            ended.append(f"{group[0]}…: {how_it_ended(done)}")
    seen = {row["case"] for row in rows if row["kind"] in ("step", "candidates", "experts")}
    missing = [name for name in names if name not in seen]
    held = [row["met"] for row in rows if "met" in row]
    summary = f"{len(seen)} of {len(names)} cases, {sum(held)} of {len(held)} aims met"
    if missing:
        summary += f"; without a figure: {', '.join(missing)}"
    return {"verdict": verdict(missing or ended), "summary": "; ".join([summary, *ended]), "rows": rows}


def check_collectives(runner, context):
    """Times of our all-reduce between two processes on this device. No aim: they take turns."""
    small = ["--launches=1", "--operations=2"] if context.options.toy else []
    done = runner.run([context.folder / context.manifest["collectives"], *small], 180, context.environment)
    lines = [line for line in done.lines if line.strip()]
    bad = done.code != 0 or not lines
    return {"verdict": verdict(bad), "lines": lines, "summary": how_it_ended(done) if bad else f"{len(lines)} lines"}


def check_torch(runner, context):
    python = shutil.which("python3") or sys.executable
    script = context.folder / context.manifest["torch"]
    done = runner.run([python, script, *(["--toy"] if context.options.toy else [])], TORCH_SECONDS,
                      {**os.environ, "PYTHONUNBUFFERED": "1"})  # Not our folders of libraries: it brings its own.
    rows = rows_of(done.lines)
    if done.code == 77:
        return {"verdict": "skipped", "summary": done.lines[-1] if done.lines else "no PyTorch", "rows": []}
    return {"verdict": verdict(done.code != 0), "rows": rows,
            "summary": f"{sum(row['kind'] == 'torch' for row in rows)} cases" + ("" if done.code == 0 else f"; {how_it_ended(done)}")}


RUN = {"device": check_device, "ceilings": check_ceilings, "tests": check_tests, "golden": check_golden,
       "bench": check_bench, "collectives": check_collectives, "torch": check_torch, "sanitize": check_sanitize}
ALL = list(RUN)
DEFAULT = [name for name in ALL if name != "sanitize"]
