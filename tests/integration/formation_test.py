#!/usr/bin/env python3
"""Groups that cannot form, ranks that disagree, restarts that do not help, engines that stand still."""
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import unittest

from cluster import DEMO, PATIENCE, WORKER, Process, free_port, get, wait_for
from fleet import FAILPOINTS_WORKER, Fleet, chat
from history import COMPLETE

ADDRESS = "unix-abstract:quicksilver-formation-test-{}"


def rank(number, address, *flags, model=DEMO, ranks=2, epoch=7):
    """One rank started by hand, as over several hosts; and the port of its pages."""
    pages = free_port()
    process = Process(f"rank{number}", WORKER, f"--model={model}", f"--tensor-parallel-size={ranks}", f"--rank={number}",
                      f"--group-address={address}", f"--epoch={epoch}", f"--listen=127.0.0.1:{free_port()}",
                      f"--metrics-listen=127.0.0.1:{pages}", "--threads=1", *flags)
    return process, pages


def copy_of_demo(folder, change):
    copy = pathlib.Path(folder) / "demo"
    shutil.copytree(DEMO, copy, ignore=shutil.ignore_patterns("eval"))
    change(copy)
    return copy


def change_config(name, field, value):
    def change(folder):
        config = json.loads((folder / name).read_text())
        config[field] = value
        (folder / name).write_text(json.dumps(config))
    return change


class Formation(unittest.TestCase):
    def test_a_group_whose_rank_never_comes_is_never_ready_and_names_it(self):
        process, pages = rank(0, ADDRESS.format(free_port()), "--formation-timeout=2")
        self.addCleanup(process.stop)
        seen = set()
        wait_for(lambda: seen.add(get(f"http://127.0.0.1:{pages}/health/ready")[0]) or process.process.poll() is not None,
                 "the end of the formation", 20)
        self.assertEqual(process.process.returncode, 4, process.text())
        self.assertLessEqual(seen, {0, 503})
        self.assertIn("rank 1 of 2 missing after 2s", process.text())

    def disagree(self, pattern, *flags, model=DEMO, **fields):
        address = ADDRESS.format(free_port())
        began = time.monotonic()
        ranks = [rank(0, address)[0], rank(1, address, *flags, model=model, **fields)[0]]
        try:
            for process in ranks:
                process.process.wait(10 * PATIENCE)
            self.assertLess(time.monotonic() - began, 5 * PATIENCE)
            for process in ranks:
                self.assertEqual(process.process.returncode, 3, process.text())
                self.assertRegex(process.text(), pattern)
        finally:
            for process in ranks:
                process.stop()

    def test_other_pages_are_named_with_both_numbers(self):
        self.disagree("KV pages is '2048' on rank 0 and '64' on rank 1", "--kv-pages=64")

    def test_another_page_size_is_named_with_both_numbers(self):
        self.disagree("page size is '16' on rank 0 and '32' on rank 1", "--page-size=32", "--kv-pages=2048")

    def test_other_weights_are_named_with_both_digests(self):
        def flip(folder):
            data = bytearray((folder / "model.safetensors").read_bytes())
            data[-1] ^= 1
            (folder / "model.safetensors").write_bytes(data)

        with tempfile.TemporaryDirectory() as folder:
            self.disagree("model digest is '[0-9a-f]{64}' on rank 0 and '[0-9a-f]{64}' on rank 1", model=copy_of_demo(folder, flip))

    def test_another_configuration_is_named_with_both_digests(self):
        with tempfile.TemporaryDirectory() as folder:
            self.disagree("model digest is", model=copy_of_demo(folder, change_config("config.json", "rope_theta", 12345.0)))

    def test_another_tokenizer_is_named_with_both_digests(self):
        with tempfile.TemporaryDirectory() as folder:
            self.disagree("model digest is '[0-9a-f]{64}' on rank 0 and '[0-9a-f]{64}' on rank 1", model=copy_of_demo(folder, change_config("tokenizer.json", "version", "1.1")))

    def test_a_coordinator_refuses_a_group_with_another_tokenizer_and_stays_unready(self):
        with tempfile.TemporaryDirectory() as folder:
            other = copy_of_demo(folder, change_config("tokenizer.json", "version", "1.1"))
            with Fleet(groups=[{"model": other}], ready=False) as fleet:
                wait_for(lambda: "tokenizer.json differs" in fleet.coordinators[0].text(), "the refusal", 10)
                self.assertFalse(fleet.coordinators[0].ready())


class Storms(unittest.TestCase):
    def test_a_group_that_dies_at_init_is_restarted_ever_more_slowly_and_harms_no_other(self):
        with Fleet(groups=[{}, {"failpoints": "worker.init[0]=exit(4)"}], ready=False) as fleet:
            wait_for(fleet.coordinators[0].ready, "one group ready", 20)
            storm = fleet.groups[1]

            def delays():
                return [float(d) for d in re.findall(r'"delay_seconds":([0-9.]+)', storm.text())]

            wait_for(lambda: len(delays()) >= 4, "four restarts", 20)
            self.assertEqual(delays()[:4], [0, 1, 2, 4])
            outcome = fleet.ask(chat(max_tokens=32))
            self.assertEqual(outcome.end, COMPLETE)
            self.assertTrue(storm.alive())

    def test_a_truncated_shard_is_final_and_not_restarted(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = copy_of_demo(folder, lambda c: (c / "model.safetensors").write_bytes(
                (c / "model.safetensors").read_bytes()[:-100]))
            done = subprocess.run([WORKER, f"--model={copy}", f"--listen=127.0.0.1:{free_port()}",
                                   f"--metrics-listen=127.0.0.1:{free_port()}"], capture_output=True, text=True, timeout=10 * PATIENCE)
            self.assertEqual(done.returncode, 3, done.stderr)
            self.assertIn("model.safetensors", done.stderr)

    def test_a_missing_shard_and_tensor_are_named(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = copy_of_demo(folder, lambda c: (c / "model.safetensors").unlink())
            done = subprocess.run([WORKER, f"--model={copy}", f"--listen=127.0.0.1:{free_port()}",
                                   f"--metrics-listen=127.0.0.1:{free_port()}"], capture_output=True, text=True, timeout=10 * PATIENCE)
            self.assertEqual(done.returncode, 3, done.stderr)
            self.assertIn("safetensors", done.stderr)


class Failpoints(unittest.TestCase):
    def test_the_shipped_worker_refuses_them_and_the_variant_names_what_it_does_not_know(self):
        for program, rules, part in ((WORKER, "group.skip_step=fail", "QUICKSILVER_FAILPOINTS"),
                                     (FAILPOINTS_WORKER, "group.skip_steps=fail", "group.skip_step[rank]")):
            done = subprocess.run([program, f"--model={DEMO}"], capture_output=True, text=True, timeout=10 * PATIENCE,
                                  env={"QUICKSILVER_FAILPOINTS": rules})
            self.assertEqual(done.returncode, 2)
            self.assertIn(part, done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
