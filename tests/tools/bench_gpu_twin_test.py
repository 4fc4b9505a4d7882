"""The benchmarks of steps run to their end on the CUDA twin, at toy sizes, and print rows that tools/gpu_check can read.

usage: bench_gpu_twin_test.py PROGRAM
"""
import json
import os
import subprocess
import sys
import unittest

PROGRAM = sys.argv[1]
# One of each kind: a cached block, every row of a canvas, 8-bit layers, candidates, experts, two processes.
CASES = ["llada8b_bf16_1x32", "llada8b_bf16_canvas1024", "llada8b_fp8_1x32", "candidates_126k_32", "experts_llada2mini_1x32",
         "llada8b_bf16_tp2_1x32"]


def run(*arguments):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "QUICKSILVER_CUDA_TWIN_SHARED": "1"})


class BenchGpu(unittest.TestCase):
    def test_every_kind_of_case_prints_a_row_with_its_floor_and_what_it_was_held_to(self):
        done = run("--toy", "--breakdown", "--only", ",".join(CASES))
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        ceilings = lines[0]
        self.assertEqual(ceilings["kind"], "ceilings")
        for name in ("copy_gb_per_s", "bf16_tflops", "fp8_tflops"):
            self.assertGreater(ceilings[name], 0, name)
        rows = {line["case"]: line for line in lines if line["kind"] in ("step", "candidates", "experts")}
        self.assertEqual(list(rows), CASES)
        for row in rows.values():
            self.assertGreater(row["measured_us"], 0)
            self.assertGreater(row["floor_us"], 0)
            self.assertAlmostEqual(row["ratio"], row["measured_us"] / row["floor_us"], places=6)
        products = {line["case"]: line for line in lines if line["kind"] == "products"}
        self.assertIn("scaled e4m3", " ".join(products["llada8b_fp8_1x32"]["choices"]))
        self.assertGreater(products["llada8b_bf16_1x32"]["algorithms_refused"], 0)
        step = rows["llada8b_bf16_1x32"]
        self.assertIn("measured / floor <= 1.10", step["aim"])
        self.assertAlmostEqual(step["host_gap_us"], max(0, step["measured_us"] - step["device_us"]), places=3)
        self.assertEqual(step["tokens"][0]["per_forward"], 1)
        self.assertTrue(all(tokens["source"] for tokens in step["tokens"]))
        self.assertEqual(rows["llada8b_bf16_tp2_1x32"]["ranks"], 2)
        experts = rows["experts_llada2mini_1x32"]
        self.assertIn("measured / floor <= 1.25", experts["aim"])
        self.assertTrue(8 <= experts["touched"] <= 32, "4 rows go to 8 experts each")
        self.assertEqual(experts["bytes"], experts["touched"] * 3 * 64 * 32 * 2, "only what is touched has to be read")

        parts = next(line for line in lines if line["kind"] == "breakdown")["parts"]
        calls = {part["operation"]: part["calls"] for part in parts}
        self.assertEqual(calls["attention"], 2, "one a layer")
        self.assertEqual(calls["add and norm"], 4, "two a layer")
        self.assertEqual(calls["advance blocks"], 1)

    def test_a_case_that_does_not_exist_is_refused_and_the_list_names_those_that_do(self):
        self.assertEqual(run("--only", "llada9").returncode, 2)
        names = run("--list").stdout.split()
        self.assertTrue(set(CASES) <= set(names))
        for model in ("sdar1.7b", "sdar8b"):
            for batch in (1, 16, 128):
                for block in (4, 16, 32):
                    self.assertIn(f"{model}_bf16_{batch}x{block}", names)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
