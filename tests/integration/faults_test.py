#!/usr/bin/env python3
"""What the service does when clients leave, ranks die and settings are wrong: real processes, real signals."""
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from cluster import COORDINATOR, DEMO, WORKER, Cluster, free_port, get, wait_for

PROMPT = 'def solution(numbers):\n    """Return the squares of numbers."""'
# One commit a step and no stop token: the longest stream that the demo model's context allows.
SLOW = {"max_tokens": 320, "temperature": 2, "seed": 1, "stream": True,
        "quicksilver": {"policy": "sequential"}}


def open_stream(cluster, **fields):
    connection = http.client.HTTPConnection("127.0.0.1", cluster.http, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps({
        "model": cluster.model_name(), "messages": [{"role": "user", "content": PROMPT}], **SLOW, **fields}),
        {"Content-Type": "application/json"})
    reply = connection.getresponse()
    assert reply.status == 200, (reply.status, reply.read())
    reply.readline()  # The first chunk has come: the sequence runs.
    return connection, reply


def kill_connection(connection):
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


class ClientLeaves(unittest.TestCase):
    def test_a_client_that_disconnects_mid_stream_frees_its_pages(self):
        with Cluster(ranks=1) as cluster:
            self.assertEqual(cluster.worker_metric("quicksilver_kv_cache_usage_ratio"), 0)
            streams = [open_stream(cluster) for _ in range(8)]
            self.assertGreater(wait_for(lambda: cluster.worker_metric("quicksilver_kv_cache_usage_ratio"), "pages held", 10), 0)
            for connection, reply in streams:
                reply.close()
                kill_connection(connection)
            wait_for(lambda: cluster.worker_metric("quicksilver_kv_cache_usage_ratio") == 0, "pages freed", 10)
            wait_for(lambda: cluster.coordinator_metric("quicksilver_num_requests_running") == 0, "requests gone", 10)
            self.assertGreaterEqual(cluster.coordinator_metric("quicksilver_client_disconnects_total"), 1)
            self.assertIn("return", cluster.chat(PROMPT, max_tokens=64)["choices"][0]["message"]["content"])


    def test_a_client_of_http_1_0_that_half_closes_is_reset_and_never_sees_a_clean_end(self):
        with Cluster(ranks=1) as cluster, socket.create_connection(("127.0.0.1", cluster.http), timeout=30) as client:
            body = json.dumps({"model": cluster.model_name(), "messages": [{"role": "user", "content": PROMPT}],
                               **SLOW, "n": 8}).encode()
            client.sendall(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            seen = client.recv(4096)
            client.shutdown(socket.SHUT_WR)
            with self.assertRaises(ConnectionResetError):
                while part := client.recv(65536):
                    seen += part
            self.assertNotIn(b"[DONE]", seen)


class RankDies(unittest.TestCase):
    def kill_rank(self, rank):
        with Cluster(ranks=2) as cluster:
            before = cluster.chat(PROMPT, max_tokens=64)["choices"][0]["message"]["content"]
            epoch = cluster.coordinator_metric("quicksilver_group_epoch")
            pids = cluster.worker.children()
            self.assertEqual(len(pids), 2)
            tails = []
            for _ in range(3):
                _, reply = open_stream(cluster, n=8)  # Many rows a step, so that they are still running when the rank dies.
                thread = threading.Thread(target=lambda r=reply: tails.append(r.read().decode()))
                thread.start()
                self.addCleanup(thread.join)
            killed = time.monotonic()
            os.kill(pids[rank], signal.SIGKILL)
            wait_for(lambda: len(tails) == 3, "all streams ended", 20)
            print(f"streams ended {time.monotonic() - killed:.2f} s after the kill")
            for tail in tails:
                self.assertTrue(tail.endswith("data: [DONE]\n\n"), tail[-300:])
                self.assertNotIn('"error"', tail)
                self.assertEqual(len(re.findall('"finish_reason":"', tail)), 8)
            cluster.wait_ready(30)
            self.assertGreater(cluster.coordinator_metric("quicksilver_group_epoch"), epoch)
            self.assertEqual(cluster.chat(PROMPT, max_tokens=64)["choices"][0]["message"]["content"], before)

    def test_killing_a_follower_forms_the_group_anew_and_its_streams_go_on(self):
        self.kill_rank(1)

    def test_killing_the_leader_forms_the_group_anew_and_its_streams_go_on(self):
        self.kill_rank(0)

    def test_readiness_is_false_while_there_is_no_group_and_requests_get_503(self):
        with Cluster(ranks=2) as cluster:
            model = cluster.model_name()
            self.assertEqual(cluster.worker.stop(), 0)
            wait_for(lambda: get(cluster.base + "/health/ready")[0] == 503, "not ready", 10)
            status, body, headers = cluster.post("/v1/chat/completions", {
                "model": model, "messages": [{"role": "user", "content": "x"}]})
            self.assertEqual((status, body["error"]["code"]), (503, "no_ready_worker"))
            self.assertIn("Retry-After", headers)
            self.assertEqual(get(cluster.base + "/health/live")[0], 200)


class Drain(unittest.TestCase):
    def test_sigterm_lets_running_streams_finish_and_ends_with_zero(self):
        with Cluster(ranks=1) as cluster:
            _, reply = open_stream(cluster)
            cluster.coordinator.process.send_signal(signal.SIGTERM)
            tail = reply.read().decode()
            self.assertTrue(tail.endswith("data: [DONE]\n\n"))
            self.assertNotIn('"error"', tail)
            self.assertEqual(cluster.coordinator.process.wait(30), 0)
            self.assertEqual(cluster.worker.stop(), 0)


def ends(*arguments, seconds=10):
    """(exit code, standard error) of a program that should end by itself."""
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=seconds)
    return done.returncode, done.stderr


class WrongSettings(unittest.TestCase):
    def test_a_missing_model_directory_is_named(self):
        for program in (WORKER, COORDINATOR):
            code, errors = ends(program, "--model=/no/such/dir", *(["--workers=127.0.0.1:1"] if program == COORDINATOR else []))
            self.assertEqual(code, 3, errors)
            self.assertIn("/no/such/dir", errors)

    def test_wrong_flags_name_flag_and_value(self):
        for flag, value in (("--tensor-parallel-size", "0"), ("--dtype", "f8"), ("--no-such-flag", "1")):
            code, errors = ends(WORKER, f"--model={DEMO}", f"{flag}={value}")
            self.assertEqual(code, 2, errors)
            self.assertIn(flag, errors)

    def test_a_tensor_parallel_size_that_does_not_divide_is_refused_with_numbers(self):
        code, errors = ends(WORKER, f"--model={DEMO}", "--tensor-parallel-size=3", f"--listen=127.0.0.1:{free_port()}",
                            f"--metrics-listen=127.0.0.1:{free_port()}")
        self.assertEqual(code, 3, errors)
        self.assertRegex(errors, "3")

    def test_a_port_in_use_is_named(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            code, errors = ends(COORDINATOR, f"--model={DEMO}", "--workers=127.0.0.1:1", f"--http-listen=127.0.0.1:{port}",
                                f"--grpc-listen=127.0.0.1:{free_port()}", f"--metrics-listen=127.0.0.1:{free_port()}")
            self.assertEqual(code, 5, errors)
            self.assertIn(str(port), errors)
            code, errors = ends(WORKER, f"--model={DEMO}", f"--listen=127.0.0.1:{port}",
                                f"--metrics-listen=127.0.0.1:{free_port()}", seconds=30)
            self.assertEqual(code, 5, errors)
            self.assertIn(str(port), errors)

    def test_a_truncated_checkpoint_is_refused_by_name(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "model"
            shutil.copytree(DEMO, copy, ignore=shutil.ignore_patterns("eval"))
            whole = (copy / "model.safetensors").read_bytes()
            (copy / "model.safetensors").write_bytes(whole[:len(whole) // 2])
            code, errors = ends(WORKER, f"--model={copy}", f"--listen=127.0.0.1:{free_port()}",
                                f"--metrics-listen=127.0.0.1:{free_port()}")
            self.assertEqual(code, 3, errors)
            self.assertIn("model.safetensors", errors)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    unittest.main(verbosity=2)
