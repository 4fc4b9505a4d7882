#!/usr/bin/env python3
"""The service on the CUDA backend, whose kernels the CUDA twin runs on the processor: real rank processes that add in
each other's memory, recorded steps, several of them to a launch, and what becomes of them when a device fails."""
import os
import signal
import subprocess
import threading
import time
import unittest

from cluster import BUILD, DEMO, Cluster, free_port, wait_for
from faults_test import PROMPT, open_stream

TWIN = BUILD / "tests/cuda_worker/quicksilver-worker-twin"
# Small, since every thread of every kernel is a function call here.
SMALL = ["--device=cuda", "--step-rows-max=64", "--sequences-max=2", "--kv-pages=64"]
SHARED = {"QUICKSILVER_CUDA_TWIN_SHARED": "1"}
ILLEGAL_ADDRESS = 700


def twin_cluster(ranks, *flags, **environment):
    return Cluster(ranks=ranks, worker=TWIN, worker_flags=[*SMALL, "--devices=0", *flags],
                   environment={**SHARED, **environment})


def run_to_end(*flags, seconds=20, **environment):
    ended = subprocess.run([TWIN, f"--model={DEMO}", *SMALL, *flags], capture_output=True, text=True, timeout=seconds,
                           env={**os.environ, **SHARED, **environment})
    return ended.returncode, ended.stdout + ended.stderr


def answer(cluster, **fields):
    return cluster.chat(PROMPT, max_tokens=24, **fields)["choices"][0]["message"]["content"]


class Answers(unittest.TestCase):
    def test_one_and_two_ranks_give_the_text_of_the_processor(self):
        with Cluster(ranks=1) as cluster:
            expected = answer(cluster), answer(cluster, temperature=0.8, seed=3)
        for ranks in (1, 2):
            with twin_cluster(ranks, "--dtype=f32", "--deterministic=on") as cluster:
                self.assertEqual((answer(cluster), answer(cluster, temperature=0.8, seed=3)), expected)
                self.assertNotEqual(expected[0], "")
                self.assertIn("CUDA twin", cluster.worker.text())


    def test_ranks_that_share_devices_unevenly_plan_the_same_pages(self):
        flags = ["--device=cuda", "--step-rows-max=64", "--sequences-max=1", "--devices=0,0,0,1"]
        # A third of the memory holds the workspaces and a few pages: these are really taken.
        machine = {**SHARED, "TWIN_DEVICES": "2", "TWIN_MEMORY_BYTES": "11000000000"}
        with Cluster(ranks=4, worker=TWIN, worker_flags=flags, environment=machine) as cluster:
            self.assertNotEqual(answer(cluster), "")


class Faults(unittest.TestCase):
    def expect_recovery(self, cluster, fault, seconds):
        connection, reply = open_stream(cluster)
        self.addCleanup(connection.close)
        tails = []
        thread = threading.Thread(target=lambda: tails.append(reply.read().decode()))
        thread.start()
        self.addCleanup(thread.join)
        began = time.monotonic()
        fault()
        wait_for(lambda: tails, "the stream's end", seconds + 30)
        self.assertLess(time.monotonic() - began, seconds)
        self.assertTrue(tails[0].endswith("data: [DONE]\n\n"), tails[0][-300:])
        self.assertNotIn('"error"', tails[0])
        wait_for(lambda: '"exit_code":4' in cluster.worker.text(), "the launcher's word", 10)
        cluster.wait_ready()

    def test_streams_go_on_when_a_killed_rank_makes_the_group_form_again(self):
        with twin_cluster(2) as cluster:
            pids = cluster.worker.children()
            self.expect_recovery(cluster, lambda: os.kill(pids[1], signal.SIGKILL), 15)
            self.assertNotEqual(answer(cluster), "")

    def test_a_rank_that_stands_still_is_given_up_by_the_kernels_that_wait_for_it(self):
        with twin_cluster(2, "--peer-timeout=2") as cluster:
            pids = cluster.worker.children()
            self.expect_recovery(cluster, lambda: os.kill(pids[1], signal.SIGSTOP), 15)

    def test_a_sticky_device_error_ends_the_rank_and_names_the_error(self):
        # Recording runs fewer kernels than this, the first answers more.
        with twin_cluster(1, TWIN_FAIL=f"kernel:1200:{ILLEGAL_ADDRESS}") as cluster:
            request = {"model": cluster.model_name(), "prompt": PROMPT, "max_tokens": 40}
            while '"exit_code":4' not in cluster.worker.text():
                status, body, _ = cluster.post("/v1/completions", request)
                self.assertTrue(status == 200 or body["error"]["code"] == "worker_lost", body)
            self.assertIn("cudaErrorIllegalAddress", cluster.worker.text())
            cluster.wait_ready()


    def test_a_device_that_fails_three_times_is_not_used_again(self):
        address = free_port(), free_port()
        ended, output = run_to_end("--devices=0", f"--listen=127.0.0.1:{address[0]}",
                                   f"--metrics-listen=127.0.0.1:{address[1]}", TWIN_FAIL=f"kernel:5:{ILLEGAL_ADDRESS}")
        self.assertEqual(ended, 3, output)
        self.assertEqual(output.count("group lost, forming it again"), 2, output)
        self.assertIn('"msg":"device unhealthy: it is not used again","device":0', output)

    def test_a_device_whose_memory_does_not_suffice_has_not_failed(self):
        out_of_memory = 2
        ended, output = run_to_end("--devices=0", TWIN_FAIL=f"kernel:5:{out_of_memory}")
        self.assertEqual(ended, 3, output)
        self.assertIn("cudaErrorMemoryAllocation", output)
        self.assertNotIn("a device failed", output)
        self.assertNotIn("forming it again", output)


class WrongMachines(unittest.TestCase):
    def expect(self, code, parts, *flags, **environment):
        ended, output = run_to_end(*flags, **environment)
        self.assertEqual(ended, code, output)
        for part in parts:
            self.assertIn(part, output)

    def test_no_device(self):
        self.expect(3, ["CUDA device 0", "--device=cpu"], TWIN_DEVICES="0")

    def test_more_ranks_than_devices(self):
        self.expect(3, ["rank 1 of 2", "CUDA device 1", "has 1"], "--tensor-parallel-size=2")

    def test_a_compute_capability_that_the_kernels_are_not_built_for(self):
        self.expect(3, ["8.0", "9.0"], TWIN_COMPUTE_CAPABILITY="8.0")

    def test_too_little_memory_for_the_plan(self):
        self.expect(3, ["does not fit", "GiB", "--tensor-parallel-size"], TWIN_MEMORY_BYTES=str(1 << 30))

    def test_an_allocation_that_fails_all_the_same(self):
        out_of_memory = 2
        self.expect(3, ["memory"], "--tensor-parallel-size=1", TWIN_FAIL=f"cudaMalloc:9:{out_of_memory}")

    def test_collectives_without_their_library(self):
        # Where NCCL's header was missing the build says that instead.
        ended, output = run_to_end("--tensor-parallel-size=2", "--collectives=nccl",
                                   "--nccl-library=/nowhere/libnccl.so.2", TWIN_DEVICES="2")
        self.assertEqual(ended, 3, output)
        self.assertRegex(output, "/nowhere/libnccl.so.2|this build has no NCCL")

    def test_nccl_for_two_ranks_on_one_device(self):
        self.expect(2, ["--collectives", "nccl", "CUDA device 0"], "--tensor-parallel-size=2", "--devices=0",
                    "--collectives=nccl")

    def test_auto_takes_the_processor_where_a_rank_finds_no_device(self):
        with Cluster(ranks=2, worker=TWIN, environment={"TWIN_DEVICES": "1"}) as cluster:
            self.assertNotEqual(answer(cluster), "")
            self.assertIn("computing on the processor", cluster.worker.text())


if __name__ == "__main__":
    unittest.main(verbosity=2)
