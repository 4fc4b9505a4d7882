#!/usr/bin/env python3
"""`quicksilver bench serve` against a real coordinator and worker group: few requests, every figure that can be checked."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import cluster

SMALL = ["--random-input-len=40", "--random-output-len=24", f"--tokenizer={cluster.DEMO}", "--temperature=0"]


def bench(*arguments):
    return subprocess.run([str(cluster.CLI), "bench", "serve", *arguments], capture_output=True, text=True, timeout=120)


class BenchServe(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = cluster.Cluster(ranks=1)
        cls.service.__enter__()
        cls.folder = tempfile.TemporaryDirectory()

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()
        cls.service.__exit__(None, None, None)

    def run_bench(self, *arguments):
        path = pathlib.Path(self.folder.name) / f"{self.id()}.json"
        out = bench(f"--base-url={self.service.base}", *SMALL, "--save-result", "--save-detailed",
                    f"--result-dir={self.folder.name}", f"--result-filename={path.name}", *arguments)
        self.assertEqual(out.returncode, 0, out.stderr + out.stdout)
        return json.loads(path.read_text()), out

    def test_a_closed_loop_reports_what_the_server_did(self):
        picture = pathlib.Path(self.folder.name) / "picture.svg"
        result, out = self.run_bench("--backend=openai-chat", "--num-prompts=24", "--max-concurrency=4",
                                     "--goodput", "e2el:60000", f"--picture={picture}")
        self.assertEqual((result["completed"], result["failed"], result["rejected"]), (24, 0, 0), result["errors"])
        self.assertLessEqual(result["max_concurrent_requests"], 4)
        self.assertEqual(result["model_id"], self.service.model_name())
        self.assertGreater(result["diffusion_denoising_steps"], 0)
        self.assertGreater(result["diffusion_committed_per_step"], 0)
        self.assertEqual(result["total_output_tokens"], sum(result["output_lens"]))
        self.assertAlmostEqual(result["request_goodput"], result["request_throughput"])
        for ttft, end in zip(result["ttfts"], result["e2els"]):
            self.assertLessEqual(ttft, end)
        for length in result["input_lens"]:  # The prompt and the chat template around it, as the server counts.
            self.assertTrue(40 <= length <= 60, length)
        self.assertIn("Successful requests:                     24", out.stdout)
        xml.etree.ElementTree.parse(picture)

    def test_an_open_loop_keeps_its_rate(self):
        result, _ = self.run_bench("--num-prompts=30", "--request-rate=20", "--seed=5")
        self.assertEqual((result["completed"], result["failed"]), (30, 0), result["errors"])
        starts = result["start_times"]
        self.assertEqual(starts, sorted(starts))
        # 30 gaps of a Poisson process at 20 a second take 1.5 s on average; the seed is fixed, the machine may be slow.
        self.assertGreater(starts[-1], 0.7)

    def test_equal_seeds_ask_the_same_and_are_answered_the_same(self):
        texts = [self.run_bench("--num-prompts=6", f"--max-concurrency={n}", "--seed=9")[0]["generated_texts"]
                 for n in (1, 6)]
        self.assertEqual(texts[0], texts[1])

    def test_refused_requests_count_as_failed_with_their_reason(self):
        out = bench(f"--base-url={self.service.base}", "--ready-check-timeout-sec=0", "--num-prompts=2",
                    "--random-input-len=5000", "--disable-tqdm")
        self.assertEqual(out.returncode, 1, out.stdout)
        self.assertIn("Failed requests:                         2", out.stdout)
        self.assertIn("2 x status 400", out.stderr)

    def test_a_first_request_that_cannot_succeed_ends_the_run_at_once(self):
        out = bench(f"--base-url={self.service.base}", "--model=nobody", "--num-prompts=2")
        self.assertEqual(out.returncode, 1)
        self.assertIn("status 404", out.stderr)

    def test_an_address_where_nobody_listens_is_named(self):
        port = cluster.free_port()
        out = bench("--host=127.0.0.1", f"--port={port}", "--ready-check-timeout-sec=1", "--num-prompts=1")
        self.assertEqual(out.returncode, 1)
        self.assertIn(f"127.0.0.1:{port}", out.stderr)

    def test_help_lists_every_option(self):
        text = bench("--help").stdout
        for option in ("--request-rate", "--burstiness", "--max-concurrency", "--goodput", "--picture", "--extra-body"):
            self.assertIn(option, text)


if __name__ == "__main__":
    unittest.main()
