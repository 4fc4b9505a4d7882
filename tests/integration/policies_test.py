#!/usr/bin/env python3
"""Decoding as a request asks for it, through real processes: the demo model (block-causal) and a bidirectional one with
random weights, over HTTP with the official SDK."""
import concurrent.futures
import json
import math
import pathlib
import sys
import tempfile
import unittest

import openai

from cluster import Cluster, get, random_checkpoint

PROMPT = 'def keep_even(numbers):\n    """Keep only the elements of numbers that are even."""'
MESSAGES = [{"role": "user", "content": PROMPT}]
DEMO_POLICIES = ["static", "dynamic", "sequential", "threshold", "factor", "entropy_bound", "entropy_sum", "hierarchical",
                 "credit", "klass", "wino"]
LLADA_POLICIES = [*DEMO_POLICIES, "remdm", "variable_length", "multi_block"]
MASK, TOKENS = None, 24


def setUpModule():
    global demo, llada, clients, folder, MASK
    demo = Cluster(ranks=2)
    folder = tempfile.TemporaryDirectory()
    checkpoint = pathlib.Path(folder.name) / "llada"
    random_checkpoint(checkpoint, "--family=llada", "--hidden=64", "--layers=2", "--heads=4", "--kv-heads=4", "--mlp=128",
                      "--positions=256")
    MASK = json.loads((checkpoint / "config.json").read_text())["mask_token_id"]
    llada = Cluster(ranks=1, model=checkpoint)
    demo.__enter__()
    llada.__enter__()
    clients = {cluster: openai.OpenAI(base_url=cluster.base + "/v1", api_key="none", max_retries=0)
               for cluster in (demo, llada)}


def tearDownModule():
    for cluster in (demo, llada):
        clients[cluster].close()
        cluster.__exit__(None, None, None)
    folder.cleanup()


def ask(cluster, extension=None, **fields):
    return clients[cluster].chat.completions.create(
        model=cluster.model_name(), messages=MESSAGES, **{"temperature": 0, "seed": 1, "max_tokens": TOKENS, **fields},
        extra_body={"quicksilver": extension or {}})


def text_of(cluster, extension=None, **fields):
    return ask(cluster, extension, **fields).choices[0].message.content


def refusal(test, cluster, path, **fields):
    status, body, _ = cluster.post(path, {"model": cluster.model_name(), **fields})
    test.assertEqual(status, 400, body)
    return body["error"]["param"], body["error"]["message"]


class Policies(unittest.TestCase):
    def check(self, cluster, policies):
        listed = json.loads(get(cluster.base + "/v1/models")[1])["data"][0]["quicksilver"]
        self.assertEqual(listed["policies"], policies)
        alone = {}
        for policy in policies:
            with self.subTest(policy=policy):
                answer = ask(cluster, {"policy": policy})
                alone[policy] = answer.choices[0].message.content
                self.assertEqual(answer.model_extra["quicksilver"]["policy"], policy)
                self.assertNotIn("approximate", answer.model_extra["quicksilver"])
        with concurrent.futures.ThreadPoolExecutor(len(policies)) as pool:
            together = list(pool.map(lambda policy: text_of(cluster, {"policy": policy}), policies))
        self.assertEqual(together, [alone[policy] for policy in policies])

    def test_the_demo_model_runs_all_of_its_family_alone_and_together(self):
        self.check(demo, DEMO_POLICIES)

    def test_a_bidirectional_model_runs_all_of_its_family_alone_and_together(self):
        self.check(llada, LLADA_POLICIES)

    def test_profiles_choose(self):
        ran = [ask(demo, {"profile": profile}).model_extra["quicksilver"] for profile in ("quality", "balanced", "fast")]
        self.assertEqual([extension["policy"] for extension in ran], ["static", "dynamic", "dynamic"])
        self.assertGreaterEqual(ran[0]["forwards"], ran[2]["forwards"])

    def test_an_approximate_cache_is_named(self):
        for cache in ("prefix", "dual", "vicinity"):
            extension = ask(llada, {"policy": "threshold", "cache": cache}).model_extra["quicksilver"]
            self.assertEqual((extension["cache"], extension["approximate"]), (cache, True))
        self.assertNotIn("approximate", ask(llada, {"cache": "none"}).model_extra["quicksilver"])

    def test_what_cannot_be_run_is_refused_by_name(self):
        chat = {"path": "/v1/chat/completions", "messages": MESSAGES, "max_tokens": 8}
        for extension, param, told in [
                ({"policy": "token_edit"}, "policy", "cannot run"),
                ({"policy": "best"}, "policy", "expected one of"),
                ({"threshold": 1.5}, "threshold", "(1.5) must be in [0, 1]"),
                ({"steps": 4096}, "steps", "must be in [1, "),
                ({"policy": "static", "factor": 1}, "factor", "does not use it"),
                ({"cache": "dual"}, "cache", "bidirectional"),
                ({"block_length": 5}, "block_length", "block-causal"),
                ({"remasking": "random", "policy": "threshold"}, "remasking", "static"),
                ({"speed": 3}, "speed", "Unknown parameter"),
                ({"fixed_ids": [5]}, "fixed_ids", "right context")]:
            with self.subTest(extension=extension):
                got, message = refusal(self, demo, quicksilver=extension, **chat)
                self.assertEqual(got, f"quicksilver.{param}")
                self.assertIn(told, message)
        got, message = refusal(self, demo, "/v1/completions", prompt="def f", suffix="return x")
        self.assertEqual(got, "suffix")
        self.assertIn("prompt format", message)
        got, message = refusal(self, llada, "/v1/completions", prompt="def f", quicksilver={"fixed_ids": [5, MASK]})
        self.assertEqual(got, "quicksilver.fixed_ids[1]")
        self.assertIn("mask", message)
        got, _ = refusal(self, demo, logit_bias={"99999999": 1}, **chat)
        self.assertEqual(got, "logit_bias.99999999")


class Infill(unittest.TestCase):
    def test_what_follows_changes_what_is_written_and_nothing_else(self):
        def fill(**fields):
            return clients[llada].completions.create(model=llada.model_name(), prompt="def f(x):", max_tokens=12,
                                                     temperature=0, **fields)
        plain, filled = fill(), fill(suffix="\n    return x\n")
        self.assertNotEqual(filled.choices[0].text, plain.choices[0].text)
        self.assertNotIn("return x\n", filled.choices[0].text)
        self.assertGreater(filled.usage.prompt_tokens, plain.usage.prompt_tokens)

    def test_the_fim_route_fills_as_completions_do(self):
        body = {"model": llada.model_name(), "prompt": "def f(x):", "suffix": "\n    return x\n", "max_tokens": 12}
        status, answer, _ = llada.post("/v1/fim/completions", body)
        self.assertEqual(status, 200, answer)
        self.assertEqual(answer["object"], "text_completion")
        page = get(f"http://127.0.0.1:{llada.metrics_port}/metrics")[1]
        self.assertRegex(page, r'code="200",finish_reason="(stop|length)",route="/v1/fim/completions"} [1-9]')
        plain = clients[llada].completions.create(temperature=0, presence_penalty=1.5, **body)
        self.assertEqual(answer["choices"][0]["text"], plain.choices[0].text)

    def test_fixed_tokens_stay_where_they_are(self):
        fixed = [-1, 40, -1, 41, 42]
        answer = ask(llada, {"fixed_ids": fixed}, logprobs=True, max_tokens=12)
        plain = ask(llada, {}, logprobs=True, max_tokens=12)
        bytes_of = lambda reply: [token.bytes for token in reply.choices[0].logprobs.content]
        self.assertNotEqual(bytes_of(answer), bytes_of(plain))
        again = ask(llada, {"fixed_ids": fixed[:2]}, logprobs=True, max_tokens=12)
        self.assertEqual(bytes_of(answer)[1], bytes_of(again)[1])
        self.assertEqual(answer.choices[0].logprobs.content[1].logprob, -9999)

    def test_a_draft_is_where_an_answer_begins(self):
        tokens = [token.token for token in ask(llada, {"draft": "x = 1"}, logprobs=True).choices[0].logprobs.content]
        self.assertTrue("".join(tokens).startswith("x = 1"), tokens)


class LogProbabilities(unittest.TestCase):
    def test_every_token_has_its_own_among_the_best(self):
        for extension in ({"policy": "dynamic"}, {"policy": "wino"}):
            answer = ask(demo, extension, logprobs=True, top_logprobs=5)
            tokens = answer.choices[0].logprobs.content
            self.assertEqual(bytes(b for token in tokens for b in token.bytes).decode(), answer.choices[0].message.content)
            self.assertEqual(len(tokens), answer.usage.completion_tokens)
            for token in tokens:
                self.assertEqual(len(token.top_logprobs), 5)
                self.assertEqual([top.logprob for top in token.top_logprobs],
                                 sorted((top.logprob for top in token.top_logprobs), reverse=True))
                self.assertLessEqual(sum(math.exp(top.logprob) for top in token.top_logprobs), 1.001)
                # Greedy: the token is the best one.
                self.assertAlmostEqual(token.logprob, token.top_logprobs[0].logprob, places=3)

    def test_chunks_have_the_tokens_of_their_text(self):
        whole = ask(demo, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        streamed = []
        for chunk in ask(demo, logprobs=True, top_logprobs=2, stream=True):
            choice = chunk.choices[0]
            tokens = choice.logprobs.content if choice.logprobs else []
            self.assertEqual(bytes(b for token in tokens for b in token.bytes).decode(), choice.delta.content or "")
            streamed += tokens
        self.assertEqual(streamed, whole)

    def test_completions_tell_where_each_token_stands(self):
        answer = clients[demo].completions.create(model=demo.model_name(), prompt="def f(x):", max_tokens=8, temperature=0,
                                                  logprobs=2)
        logprobs, text = answer.choices[0].logprobs, answer.choices[0].text
        self.assertEqual("".join(logprobs.tokens), text)
        for token, offset in zip(logprobs.tokens, logprobs.text_offset):
            self.assertTrue(("def f(x):" + text)[offset:].startswith(token))


class BiasesAndPenalties(unittest.TestCase):
    def test_what_is_forbidden_does_not_come(self):
        tokens = ask(demo, logprobs=True).choices[0].logprobs.content
        first = self.token_id(tokens[0])
        for how in ({"logit_bias": {str(first): -100}}, {"extension": {"forbidden_ids": [first]}}):
            answer = ask(demo, logprobs=True, **how)
            self.assertNotIn(tokens[0].bytes, [token.bytes for token in answer.choices[0].logprobs.content])

    @staticmethod
    def token_id(token):
        vocabulary = json.loads((pathlib.Path(demo.model) / "tokenizer.json").read_text())["model"]["vocab"]
        return vocabulary[token.token.replace(" ", "\u0120").replace("\n", "\u010a")]

    def test_penalties_make_repetition_rarer(self):
        def repeats(**fields):
            tokens = [token.token for token in ask(llada, logprobs=True, **fields).choices[0].logprobs.content]
            return len(tokens) - len(set(tokens))
        plain = repeats()
        self.assertLessEqual(repeats(presence_penalty=2, frequency_penalty=2), plain)
        self.assertNotEqual(text_of(llada, frequency_penalty=2), text_of(llada, frequency_penalty=-2))


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    unittest.main(verbosity=2)
