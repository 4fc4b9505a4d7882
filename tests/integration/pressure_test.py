#!/usr/bin/env python3
"""Numbers that are none, pages that run out, policies that never commit, engines that stand still, protocol abuse."""
import importlib
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import grpc
import openai

from clients import Load
from cluster import PATIENCE, ROOT, get, wait_for
from fleet import PROMPTS, SLOW, Fleet, chat, mixed_bodies, streamed
from history import COMPLETE, ERROR


class Numbers(unittest.TestCase):
    def test_a_row_that_is_nan_fails_its_request_alone(self):
        with Fleet(groups=[{"failpoints": "engine.nan_row[667]=fail+5"}]) as fleet:
            bodies = fleet.named(mixed_bodies(16))
            fleet.reference(bodies)
            with Load() as load:
                load.send(fleet.api, bodies)
                load.send(fleet.api, fleet.named([chat(**SLOW, seed=667), streamed(chat(**SLOW, seed=667))]))
                outcomes = load.finish()
            for faulty in outcomes[-2:]:
                self.assertEqual((faulty.end, faulty.code), (ERROR, "numerical_error"))
            self.assertEqual(outcomes[-2].status, 500)
            self.assertEqual([(o.code, o.note) for o in outcomes[:-2] if o.end != COMPLETE], [])
            self.assertEqual(sum(p.sum("quicksilver_numerical_errors_total") for p in fleet.readings()), 2)
            fleet.judge(self, outcomes[:-2])


class Pages(unittest.TestCase):
    def test_preempted_requests_complete_with_the_same_bytes_when_each_needs_most_of_the_pool(self):
        # 24 pages of 16 positions: a prompt of about 30 tokens and 256 more take 18 of them.
        with Fleet(groups=[{}]) as big:
            bodies = [b for b in big.named(mixed_bodies(16)) if b.get("n", 1) == 1]
            references = big.reference(bodies)
        with Fleet(groups=[{"flags": ["--kv-pages=24", "--sequences-max=16"]}]) as fleet:
            fleet.references = references
            before = fleet.readings()
            with Load() as load:
                load.send(fleet.api, bodies)
                outcomes = load.finish()
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
            preempted = fleet.groups[0].page().sum("quicksilver_preemptions_total")
            print(f"small pool: {preempted:.0f} preemptions")
            self.assertGreater(preempted, 0)
            fleet.judge(self, outcomes, before)

    def test_a_request_that_can_never_fit_is_refused_at_once(self):
        with Fleet(groups=[{"flags": ["--kv-pages=8"]}]) as fleet:
            outcome = fleet.ask(chat(max_tokens=512))
            self.assertEqual(outcome.status, 400, outcome.error)
            self.assertLess(outcome.ended_at - outcome.sent, 1 * PATIENCE)


class Policies(unittest.TestCase):
    def test_a_threshold_that_nothing_reaches_still_commits_a_position_a_step(self):
        with Fleet(groups=[{}]) as fleet:
            outcome = fleet.ask(chat(max_tokens=64, temperature=0, quicksilver={"confidence_threshold": 1.0}))
            self.assertEqual(outcome.end, COMPLETE, outcome.error)
            self.assertLessEqual(outcome.usage["completion_tokens"], 64)
            fleet.wait_idle()


class Hangs(unittest.TestCase):
    def test_an_engine_that_stands_still_loses_its_lease_of_life_and_its_pages_still_answer(self):
        with Fleet(groups=[{"failpoints": "worker.before_step[0]=hang+50"}, {}]) as fleet:
            hung = fleet.groups[0]
            bodies = fleet.named([streamed(chat(PROMPTS[i % 4], **SLOW, seed=i)) for i in range(8)])
            slowest, seen = 0.0, []
            with Load() as load:
                load.send(fleet.api, bodies)
                began = time.monotonic()

                def state():
                    nonlocal slowest
                    asked = time.monotonic()
                    seen.append(get(hung.pages + "/health/live", timeout=2)[0])
                    slowest = max(slowest, time.monotonic() - asked)
                    return seen[-1] != 200 or '"exit_code":4' in hung.text()

                wait_for(state, "the end of the hung engine", 60)
                print(f"hung engine: {seen[-1]} after {time.monotonic() - began:.1f} s, slowest health answer {slowest:.3f} s")
                self.assertLess(slowest, 1 * PATIENCE)
                outcomes = load.finish()
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])


class Visible(unittest.TestCase):
    def test_the_sdk_raises_when_a_stream_ends_half_way(self):
        with Fleet(groups=[{}], coordinators=[{"flags": ["--resume-wait-seconds=0"]}]) as fleet:
            client = openai.OpenAI(base_url=fleet.coordinators[0].base + "/v1", api_key="none", max_retries=0)
            body = fleet.named([chat(**{**SLOW, "max_tokens": 900}, seed=5)])[0]
            extra = {"quicksilver": body.pop("quicksilver")}
            with self.assertRaises(openai.APIError) as caught:
                for number, _ in enumerate(client.chat.completions.create(stream=True, extra_body=extra, **body)):
                    if number == 3:
                        fleet.groups[0].kill()
            self.assertEqual(caught.exception.code, "worker_lost")

    def test_the_sdk_raises_when_its_coordinator_is_killed(self):
        with Fleet(groups=[{}]) as fleet:
            client = openai.OpenAI(base_url=fleet.coordinators[0].base + "/v1", api_key="none", max_retries=0)
            body = fleet.named([chat(**{**SLOW, "max_tokens": 900}, seed=5)])[0]
            extra = {"quicksilver": body.pop("quicksilver")}
            with self.assertRaises(Exception) as caught:
                for number, _ in enumerate(client.chat.completions.create(stream=True, extra_body=extra, **body)):
                    if number == 3:
                        fleet.coordinators[0].kill()
            self.assertIn(type(caught.exception).__name__, ("RemoteProtocolError", "ReadError", "APIConnectionError"))


class Grpc(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        out = tempfile.mkdtemp()
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}/proto", f"--python_out={out}",
                        f"--grpc_python_out={out}", f"{ROOT}/proto/quicksilver/v1/inference.proto"], check=True)
        sys.path.insert(0, out)
        cls.pb = importlib.import_module("quicksilver.v1.inference_pb2")
        cls.stubs = importlib.import_module("quicksilver.v1.inference_pb2_grpc")

    def request(self, fleet, **fields):
        request = self.pb.GenerateRequest(model=fleet.model_name(), max_tokens=fields.pop("max_tokens", 16))
        request.chat.messages.add(role="user", content=fields.pop("text", "def f(x):"))
        return request

    def test_abuse_is_refused_and_leaves_other_connections_alone(self):
        with Fleet(groups=[{}]) as fleet:
            target = f"127.0.0.1:{fleet.coordinators[0].grpc}"
            with grpc.insecure_channel(target) as bad, grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as good:
                stub, other = self.stubs.InferenceStub(bad), self.stubs.InferenceStub(good)
                with self.assertRaises(grpc.RpcError) as caught:
                    list(stub.Generate(self.request(fleet, text="x" * (70 << 20)), timeout=20))
                self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
                with self.assertRaises(grpc.RpcError) as caught:
                    bad.unary_unary("/quicksilver.v1.Inference/NoSuchMethod")(b"", timeout=5)
                self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)
                for _ in range(300):  # Begun and reset at once.
                    stub.Generate(self.request(fleet, max_tokens=256)).cancel()
                for garbage in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\4", b"\0" * 4096, b"GET / HTTP/1.1\r\n\r\n"):
                    with socket.create_connection(("127.0.0.1", fleet.coordinators[0].grpc)) as raw:
                        raw.sendall(garbage)
                text = "".join(e.delta.text for e in other.Generate(self.request(fleet), timeout=20) if e.HasField("delta"))
                self.assertTrue(text)
            fleet.judge(self, [])

    def test_a_deadline_ends_a_stream_in_time_and_frees_its_place(self):
        with Fleet(groups=[{"failpoints": "worker.before_step=delay(20ms)"}]) as fleet:
            with grpc.insecure_channel(f"127.0.0.1:{fleet.coordinators[0].grpc}") as channel:
                request = self.request(fleet, max_tokens=512)
                began = time.monotonic()
                with self.assertRaises(grpc.RpcError) as caught:
                    list(self.stubs.InferenceStub(channel).Generate(request, timeout=0.6))
                self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
                self.assertLess(time.monotonic() - began, 0.6 + 0.2 * PATIENCE)
            fleet.wait_idle(3)


if __name__ == "__main__":
    unittest.main(verbosity=2)
