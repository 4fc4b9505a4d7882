"""tools/gpu_check without a GPU: what it says then, and that it counts, times out and reports, on stand-in programs.

usage: gpu_check_test.py ROOT BENCH_GPU_TWIN
"""
import json
import lzma
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

ROOT, BENCH = pathlib.Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(ROOT / "tools/gpu"))
from check import device, report, stages  # noqa: E402

PASSING = """echo '[       OK ] Suite.A (3 ms)'; echo '[       OK ] Suite.B/2 (0 ms)'
echo 'needs 2 CUDA devices, has 1'; echo '[  SKIPPED ] Suite.C (0 ms)'
echo '[  SKIPPED ] 1 test, listed below:'; echo '[  SKIPPED ] Suite.C'"""
FAILING = """echo '[       OK ] Suite.A (3 ms)'; echo '[  FAILED  ] Suite.D, where GetParam() = 7 (12 ms)'
echo '[  FAILED  ] 1 test, listed below:'; echo '[  FAILED  ] Suite.D, where GetParam() = 7'; exit 1"""
HANGING = "echo '[       OK ] Suite.A (3 ms)'; sleep 300 & sleep 300"


def check(*arguments, **keywords):
    return subprocess.run([sys.executable, ROOT / "tools/gpu_check", *arguments], capture_output=True, text=True, timeout=120,
                          **keywords)


class Folder:
    """Stand-ins for the programs, with a manifest."""

    def __init__(self, tests, bench=None):
        self.temporary = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.temporary.name)
        for name, body in tests.items():
            self.script(name, body)
        if bench is None:
            bench = "bench"
            self.script(bench, "exit 1")
        limits = {name: 1 if body == HANGING else 30 for name, body in tests.items()}
        manifest = {"commit": "abc", "conformance": "gpu_kernels_test", "bench": bench, "collectives": "bench", "torch": "none.py",
                    "tests": [{"name": name, "program": name, "limit_s": limits[name]} for name in tests]}
        (self.path / "manifest.json").write_text(json.dumps(manifest))

    def script(self, name, body):
        path = self.path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(self, *arguments, path=""):
        """(exit code, results.json, the markdown page)"""
        out = self.path / "out"
        done = check("--programs", self.path, "--toy", "--out", out, *arguments,
                     env={**os.environ, "QUICKSILVER_CUDA_TWIN_SHARED": "1", "PATH": f"{path}:{os.environ['PATH']}"})
        results = json.loads((out / "results.json").read_text())
        return done.returncode, results, next(out.glob("gpu-*.md")).read_text()


class GpuCheck(unittest.TestCase):
    def folder(self, *arguments, **keywords):
        folder = Folder(*arguments, **keywords)
        self.addCleanup(folder.temporary.cleanup)
        return folder

    def test_without_a_gpu_it_says_so_in_one_line_and_ends_with_3(self):
        if not isinstance(device.look(), str):
            self.skipTest("this machine has a GPU")
        done = check()
        self.assertEqual(done.returncode, 3)
        self.assertEqual(done.stdout, "")
        self.assertRegex(done.stderr, r"^gpu_check: no .*; nothing was run\n$")

    def test_wrong_arguments_end_with_2(self):
        done = check("--stages", "device,tets")
        self.assertEqual(done.returncode, 2)
        self.assertIn("unknown stage 'tets'", done.stderr)

    def test_a_failing_and_a_hanging_program_are_counted_and_stop_no_other(self):
        folder = self.folder({"gpu_a_test": PASSING, "gpu_b_test": FAILING, "gpu_c_test": HANGING, "gpu_golden_test": PASSING})
        began = time.monotonic()
        code, results, page = folder.run("--stages", "tests,golden", "--shards", "1")
        self.assertLess(time.monotonic() - began, 30)
        self.assertEqual(code, 1)
        tests, golden = results["stages"]
        self.assertEqual((tests["verdict"], tests["passed"], tests["failed"], tests["skipped"]), ("failed", 4, 1, 1))
        programs = {program["name"]: program for program in tests["programs"]}
        self.assertEqual(programs["gpu_b_test"]["failures"], ["Suite.D"])
        self.assertRegex(programs["gpu_c_test"]["ended"], r"stopped at its limit of 1s")
        self.assertEqual((golden["verdict"], golden["passed"]), ("passed", 2))
        self.assertIn("| tests | gpu_b_test | 1 | 1 | 0 | ended with 1 |", page)
        self.assertIn("`Suite.D`", page)

    def test_shards_are_added_up_and_peers_that_are_timed_have_the_machine_alone(self):
        share = "echo \"[       OK ] Suite.Case$GTEST_SHARD_INDEX (3 ms)\"; [ $GTEST_SHARD_INDEX != 2 ] || exit 3"
        code, results, _ = self.folder({"gpu_a_test": share, "ipc_a_test": share}).run("--stages", "tests", "--shards", "3")
        whole, alone = results["stages"][0]["programs"]
        self.assertEqual((code, whole["passed"], whole["ended"]), (1, 3, "ended with 3"))
        self.assertEqual((alone["passed"], alone["ended"]), (1, ""))

    def test_compressed_programs_are_unpacked_before_they_run(self):
        folder = self.folder({"gpu_a_test": PASSING})
        plain, packed = folder.path / "gpu_a_test", folder.path / "bin/gpu_a_test.xz"
        packed.parent.mkdir()
        packed.write_bytes(lzma.compress(plain.read_bytes()))
        plain.unlink()
        manifest = (folder.path / "manifest.json")
        manifest.write_text(manifest.read_text().replace('"program": "', '"program": "bin/'))
        self.assertEqual(folder.run("--stages", "tests")[0], 0)

    def test_all_passing_ends_with_0_and_a_skip_that_one_device_does_not_explain_with_1(self):
        self.assertEqual(self.folder({"gpu_a_test": PASSING}).run("--stages", "tests")[0], 0)
        skips = PASSING + "; echo 'this machine has no NVIDIA driver'; echo '[  SKIPPED ] Suite.C (0 ms)'"
        code, results, _ = self.folder({"gpu_a_test": skips}).run("--stages", "tests", "--shards", "1")
        self.assertEqual(code, 1)
        self.assertEqual(results["stages"][0]["summary"], "2 passed, 0 failed, 2 skipped; skipped: this machine has no NVIDIA driver")

    def sanitize(self, suite, finding):
        """(exit code, the stage's summary) with a stand-in for compute-sanitizer that says `finding` of memcheck."""
        folder = self.folder({"gpu_kernels_test": suite})
        folder.script("compute-sanitizer", f"""[ $2 = racecheck ] || echo '{finding}'
                      for program; do :; done; "$program"; code=$?; echo '========= ERROR SUMMARY: 0 errors'; exit $code""")
        code, results, _ = folder.run("--stages", "sanitize", "--sanitize-seconds", "3", path=folder.path)
        return code, results["stages"][0]["summary"]

    def test_the_sanitizer_fails_on_findings_and_on_failures_and_may_run_out_of_time(self):
        code, summary = self.sanitize(PASSING, "")
        self.assertEqual((code, summary.split(",")[0]), (0, "0 findings; 4 passed"))
        code, summary = self.sanitize(PASSING, "========= Invalid __global__ read of size 4 bytes")
        self.assertEqual((code, summary.split(";")[0]), (1, "1 findings"))
        self.assertEqual(self.sanitize(FAILING, "")[0], 1)
        code, summary = self.sanitize(HANGING, "")
        self.assertEqual(code, 0)
        self.assertIn("memcheck stopped after 3s: the rest was not looked at", summary)

    def test_the_real_benchmarks_fill_the_table(self):
        folder = self.folder({}, bench=BENCH)
        code, results, page = folder.run("--stages", "ceilings,bench", "--cases", "llada8b_bf16_1x32,candidates_126k_32,experts_llada2mini_1x32")
        self.assertEqual(code, 0, results)
        rows = report.rows_of(results["stages"], "step", "candidates", "experts")
        self.assertEqual([row["case"] for row in rows], ["llada8b_bf16_1x32", "candidates_126k_32", "experts_llada2mini_1x32"])
        self.assertRegex(page, r"\| routed experts of a layer of LLaDA2-mini, bf16, 1 x 32 rows \| \d+ of 256 \|")
        self.assertRegex(page, r"\| LLaDA-8B bf16, one block of 32, 1k context, batch 1 \| [\d.]+ [mu]s \| [\d.]+ [mu]s \((bytes|flops)\)")
        self.assertIn("commit `abc`", page.lower())

    def test_a_benchmark_that_dies_is_a_failed_stage_that_names_what_is_missing(self):
        folder = self.folder({})
        folder.script("bench", 'case "$*" in *--list*) echo llada8b_bf16_1x32;; *) exit 139;; esac')
        code, results, _ = folder.run("--stages", "bench")
        self.assertEqual(code, 1)
        self.assertIn("without a figure: llada8b_bf16_1x32", results["stages"][0]["summary"])


class Groups(unittest.TestCase):
    def test_every_case_runs_in_exactly_one_group(self):
        names = subprocess.run([BENCH, "--list"], check=True, capture_output=True, text=True).stdout.split()
        groups = stages.group_cases(names)
        self.assertEqual(sorted(name for group in groups for name in group), sorted(names))
        self.assertEqual(len(groups), len(stages.BENCH_GROUPS), "a case belongs to no group")

    def test_every_case_of_pytorch_is_one_of_ours(self):
        names = subprocess.run([BENCH, "--list"], check=True, capture_output=True, text=True).stdout.split()
        out = subprocess.run([sys.executable, "-c", "import sys; sys.path.insert(0, 'tools/gpu'); import bench_torch\n"
                              "for case in bench_torch.cases(): print(case.name)"], cwd=ROOT, check=True, capture_output=True,
                             text=True).stdout.split()
        self.assertLessEqual(set(out) | set(report.TORCH_SPEEDUP_MIN), set(names))


class Comparisons(unittest.TestCase):
    def test_ratios_compare_rows_of_one_run(self):
        step = {"kind": "step", "what": "w"}
        results = [{"stage": "bench", "rows": [{**step, "case": "llada8b_bf16_1x32", "measured_us": 6000.0},
                                              {**step, "case": "llada8b_fp8_1x32", "measured_us": 3000.0},
                                              {**step, "case": "llada8b_bf16_fast_1x32", "measured_us": 5000.0}]},
                   {"stage": "torch", "rows": [{"kind": "torch", "case": "llada8b_bf16_1x32", "what": "w", "version": "2",
                                                "measured_us": 7200.0}]}]
        found = {each["what"]: each for each in report.comparisons(results)}
        self.assertEqual(found["LLaDA-8B 1x32: FP8 layers against bf16"],
                         {"what": "LLaDA-8B 1x32: FP8 layers against bf16", "ratio": 2.0, "aim": ">= 1.75", "met": True})
        self.assertEqual(found["LLaDA-8B 1x32: cost of deterministic products (time / fastest)"]["ratio"], 1.2)
        torch = found["w: ours against PyTorch 2"]
        self.assertEqual((torch["ratio"], torch["aim"], torch["met"]), (1.2, ">= 1.30", False))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
