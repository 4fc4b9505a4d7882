#!/usr/bin/env python3
"""The whole service as a user meets it: real processes, the demo model over two ranks, the official SDK, gRPC and curl."""
import concurrent.futures
import importlib
import json
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import unittest

import grpc
import openai
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cluster import CLI, ROOT, Cluster, get, wait_for

PROMPTS = [
    'def keep_even(numbers):\n    """Keep only the elements of numbers that are even."""',
    'def run(values):\n    """Return the sum of values."""',
    'def solution(numbers):\n    """أعد عدد العناصر في numbers الأكبر من 10."""',
    'def f(text):\n    """Return text in upper case 😀."""',
]


def compile_protos():
    out = tempfile.mkdtemp()
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}/proto", f"--python_out={out}",
                    f"--grpc_python_out={out}", f"{ROOT}/proto/quicksilver/v1/inference.proto"], check=True)
    sys.path.insert(0, out)
    return importlib.import_module("quicksilver.v1.inference_pb2"), importlib.import_module("quicksilver.v1.inference_pb2_grpc")


def setUpModule():
    global cluster, client, inference_pb2, stub, channel
    inference_pb2, inference_pb2_grpc = compile_protos()
    # The servers inherit a soft limit that they should raise.
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    cluster = Cluster(ranks=2)
    cluster.__enter__()
    client = openai.OpenAI(base_url=cluster.base + "/v1", api_key="none", max_retries=0)
    channel = grpc.insecure_channel(f"127.0.0.1:{cluster.grpc}")
    stub = inference_pb2_grpc.InferenceStub(channel)


def tearDownModule():
    channel.close()
    codes = cluster.coordinator.stop(), cluster.worker.stop()
    if codes != (0, 0):
        raise AssertionError(f"exit codes {codes}\n{cluster.coordinator.text()[-3000:]}\n{cluster.worker.text()[-3000:]}")


def sdk_chat(prompt, **fields):
    reply = client.chat.completions.create(model=cluster.model_name(), messages=[{"role": "user", "content": prompt}],
                                           **{"temperature": 0, "max_tokens": 96, **fields})
    return reply.choices[0].message.content


def sdk_stream(prompt, **fields):
    stream = client.chat.completions.create(model=cluster.model_name(), messages=[{"role": "user", "content": prompt}],
                                            stream=True, **{"temperature": 0, "max_tokens": 96, **fields})
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def grpc_request(prompt, temperature=0.0, seed=None):
    request = inference_pb2.GenerateRequest(model=cluster.model_name(), max_tokens=96)
    request.chat.messages.add(role="user", content=prompt)
    request.sampling.temperature = temperature
    if seed is not None:
        request.sampling.seed = seed
    return request


def grpc_text(prompt, **fields):
    return "".join(e.delta.text for e in stub.Generate(grpc_request(prompt, **fields), timeout=60) if e.HasField("delta"))


class SameRequestSameBytes(unittest.TestCase):
    def check(self, **fields):
        alone = [sdk_chat(p, **fields) for p in PROMPTS]
        self.assertTrue(all(alone))
        self.assertEqual([sdk_stream(p, **fields) for p in PROMPTS], alone)
        self.assertEqual([grpc_text(p, **fields) for p in PROMPTS], alone)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda i: (sdk_chat if i % 2 else grpc_text)(PROMPTS[i % 4], **fields), range(16)))
        self.assertEqual(together, alone * 4)

    def test_greedy_over_http_grpc_alone_and_among_sixteen(self):
        self.check()

    def test_sampled_with_a_seed_over_http_grpc_alone_and_among_sixteen(self):
        self.check(temperature=0.8, seed=1234)

    def test_another_seed_gives_another_answer(self):
        # Far from what the model knows, so that its distributions are wide.
        answers = {sdk_chat("zqx 77 ...", temperature=2, seed=seed, max_tokens=32) for seed in range(8)}
        self.assertGreater(len(answers), 1)


class Sdk(unittest.TestCase):
    def test_a_chat_answer_has_usage_fingerprint_and_extension(self):
        reply = client.chat.completions.create(model=cluster.model_name(), temperature=0, max_tokens=64,
                                               messages=[{"role": "user", "content": PROMPTS[0]}])
        self.assertEqual(reply.choices[0].finish_reason, "stop")
        self.assertRegex(reply.system_fingerprint, "^fp_[0-9a-f]{10}$")
        self.assertGreater(reply.usage.prompt_tokens, 10)
        self.assertEqual(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens)
        self.assertGreater(reply.model_extra["quicksilver"]["tokens_per_forward"], 0)
        self.assertTrue(reply._request_id)

    def test_the_stream_helper_agrees_with_the_plain_answer(self):
        with client.chat.completions.stream(model=cluster.model_name(), temperature=0, max_tokens=64,
                                            messages=[{"role": "user", "content": PROMPTS[1]}]) as stream:
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.content, sdk_chat(PROMPTS[1], max_tokens=64))

    def test_completions_choices_and_max_tokens(self):
        reply = client.completions.create(model=cluster.model_name(), prompt="def f(x):", max_tokens=4, n=2, temperature=0)
        self.assertEqual(len(reply.choices), 2)
        self.assertEqual(reply.choices[0].text, reply.choices[1].text)
        self.assertLessEqual(reply.usage.completion_tokens, 8)

    def test_a_stop_string_ends_the_answer_before_itself(self):
        whole = sdk_chat(PROMPTS[0])
        stop = whole[4:7]
        self.assertEqual(sdk_chat(PROMPTS[0], stop=[stop]), whole[:whole.index(stop)])
        self.assertEqual(sdk_stream(PROMPTS[0], stop=[stop]), whole[:whole.index(stop)])

    def test_errors_are_typed(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])
        self.assertEqual(caught.exception.code, "model_not_found")
        for fields, param in [({"temperature": 3}, "temperature"), ({"max_tokens": 0}, "max_tokens"), ({"top_p": 0}, "top_p")]:
            with self.assertRaises(openai.BadRequestError) as caught:
                sdk_chat("x", **fields)
            self.assertEqual(caught.exception.param, param)
        with self.assertRaises(openai.BadRequestError) as caught:
            sdk_chat("word " * 5000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_what_the_worker_refuses_is_a_status_also_for_a_stream(self):
        for stream in (False, True):
            with self.assertRaises(openai.BadRequestError) as caught:
                client.chat.completions.create(model=cluster.model_name(), messages=[{"role": "user", "content": "x"}],
                                               stream=stream, extra_body={"quicksilver": {"block_length": 7}})
            self.assertIn("block_length", caught.exception.message)

    def test_user_text_cannot_produce_control_tokens(self):
        plain = client.chat.completions.create(model=cluster.model_name(), temperature=0, max_tokens=8,
                                               messages=[{"role": "user", "content": "<|im_end|><|MASK|>"}])
        single = client.chat.completions.create(model=cluster.model_name(), temperature=0, max_tokens=8,
                                                messages=[{"role": "user", "content": "x"}])
        self.assertGreater(plain.usage.prompt_tokens, single.usage.prompt_tokens + 4)

    def test_canvases_come_to_those_who_ask_and_end_in_the_final_text(self):
        stream = client.chat.completions.create(
            model=cluster.model_name(), messages=[{"role": "user", "content": PROMPTS[0]}], stream=True, temperature=0,
            max_tokens=64, extra_body={"quicksilver": {"canvases": True, "policy": "sequential"}})
        text, spans = "", []
        for chunk in stream:
            spans += (chunk.model_extra.get("quicksilver") or {}).get("frame", {}).get("spans", [])
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
        self.assertEqual(text, sdk_chat(PROMPTS[0], max_tokens=64, extra_body={"quicksilver": {"policy": "sequential"}}))
        self.assertTrue({"replace", "commit"} & {span["op"] for span in spans})
        self.assertEqual("".join(span["text"] for span in spans if span["op"] == "final"), text)


class Grpc(unittest.TestCase):
    def test_health_and_reflection(self):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "liveness", "readiness"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            self.assertEqual(reply.status, health_pb2.HealthCheckResponse.SERVING)
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        self.assertIn("quicksilver.v1.Inference", services)

    def test_bad_requests_name_field_and_reason(self):
        request = grpc_request("x")
        request.sampling.temperature = 9
        with self.assertRaises(grpc.RpcError) as caught:
            list(stub.Generate(request, timeout=10))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("temperature", caught.exception.details())
        details = dict(caught.exception.trailing_metadata())
        self.assertIn(b"INVALID_VALUE", details["grpc-status-details-bin"])

    def test_the_figures_of_an_answer_add_up(self):
        events = list(stub.Generate(grpc_request(PROMPTS[0]), timeout=30))
        finished = events[-1].finished
        self.assertAlmostEqual(finished.tokens_per_forward, finished.completion_tokens / finished.forwards, places=5)
        self.assertLess(finished.time_to_first_token_seconds, 30)


class Curl(unittest.TestCase):
    def test_curl_streams_an_answer(self):
        body = json.dumps({"model": cluster.model_name(), "stream": True, "temperature": 0,
                           "messages": [{"role": "user", "content": PROMPTS[1]}]})
        out = subprocess.run(["curl", "-sN", cluster.base + "/v1/chat/completions", "-H", "Content-Type: application/json",
                              "-d", body], check=True, capture_output=True, text=True).stdout
        self.assertTrue(out.endswith("data: [DONE]\n\n"))
        chunks = [json.loads(line[6:]) for line in out.splitlines() if line.startswith("data: {")]
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "stop")

    def test_a_body_of_33_megabytes_is_refused_and_the_server_lives(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(b" " * (33 << 20))
            file.flush()
            code = subprocess.run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Content-Type: application/json",
                                   "--data-binary", f"@{file.name}", cluster.base + "/v1/chat/completions"],
                                  capture_output=True, text=True).stdout
        self.assertEqual(code, "413")
        self.assertTrue(cluster.ready())

    def test_malformed_bodies_get_400_and_the_standard_error(self):
        for body in (b"{", b'{"a":"\xff"}', b"[" * 100000, b'{"model":1e999}', b'{"messages":[]}', b"null"):
            status, error, _ = cluster.post("/v1/chat/completions", body)
            self.assertEqual(status, 400, body[:40])
            self.assertEqual(set(error["error"]), {"message", "type", "param", "code"})


class CommandLine(unittest.TestCase):
    def test_generate_prints_the_same_text_and_the_figures(self):
        out = subprocess.run([CLI, "generate", f"--server=127.0.0.1:{cluster.grpc}", "--max-tokens=96", PROMPTS[0]],
                             check=True, capture_output=True, text=True, timeout=60).stdout
        self.assertIn(sdk_chat(PROMPTS[0]), out)
        self.assertRegex(out, r"\[\d+ tokens, \d+ tokens/s, [\d.]+ tokens/forward, \d+ forwards, first token after [\d.]+ ms; dynamic\]")

    def test_generate_says_what_to_do_when_no_server_answers(self):
        done = subprocess.run([CLI, "generate", "--server=127.0.0.1:1", "x"], capture_output=True, text=True, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("what to do", done.stderr)


class Pages(unittest.TestCase):
    def test_health_metrics_and_version_pages_answer(self):
        self.assertTrue(sdk_chat(PROMPTS[0]))
        for path in ("/health", "/health/live", "/health/ready", "/ping", "/version", "/v1/models"):
            self.assertEqual(get(cluster.base + path)[0], 200, path)
        self.assertGreater(cluster.coordinator_metric("quicksilver_requests_total"), 0)
        self.assertGreater(cluster.worker_metric("quicksilver_engine_step_total"), 0)
        page = get(f"http://127.0.0.1:{cluster.worker_metrics_port}/metrics")[1]
        for operation in ("all_reduce", "all_gather"):
            count = re.search(rf'quicksilver_collective_duration_seconds_count{{[^}}]*op="{operation}"}} (\d+)', page)
            self.assertGreater(int(count.group(1)), 0, operation)

    def test_the_coordinator_may_hold_as_many_descriptors_as_the_machine_allows(self):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.assertEqual(cluster.coordinator_metric("process_max_fds"), hard)

    def test_nothing_is_held_when_all_is_quiet(self):
        wait_for(lambda: cluster.worker_metric("quicksilver_num_requests_running") == 0, "no sequence running", 10)
        self.assertEqual(cluster.worker_metric("quicksilver_kv_cache_usage_ratio"), 0)
        self.assertEqual(cluster.coordinator_metric("quicksilver_num_requests_running"), 0)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    unittest.main(verbosity=2)
