"""The unmodified openai SDK against the scripted server. usage: sdk_test.py SCRIPTED_SERVER"""

import asyncio
import subprocess
import sys
import time
import unittest

import openai

SERVER = None
HOSTILE = (
    "line\nbreak\r\nlone\rreturn data: [DONE]\n\n\u2028</script>\"\\u0041\\\" "
    "\U0001f469\u200d\U0001f467 \u0645\u0631: comment\nevent: x\n\x01\x7f"
)


def messages(text):
    return [{"role": "user", "content": text}]


class SdkTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.process = subprocess.Popen([SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        cls.url = f"http://127.0.0.1:{int(cls.process.stdout.readline().split()[1])}/v1"
        cls.client = openai.OpenAI(base_url=cls.url, api_key="unused")

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.process.stdin.close()
        assert cls.process.wait(timeout=10) == 0
        cls.process.stdout.close()

    def chat(self, text, **fields):
        return self.client.chat.completions.create(model="m", messages=messages(text), **fields)

    def test_chats(self):
        answer = self.chat("world")
        self.assertEqual(answer.choices[0].message.content, "Hello, world!")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (9, 3))
        self.assertEqual(answer.usage.total_tokens, 12)
        self.assertEqual(answer.system_fingerprint, "fp_0123456789")
        self.assertTrue(answer.id.startswith("chatcmpl-"))
        self.assertTrue(answer._request_id)
        self.assertEqual(answer.model_extra["quicksilver"], {"forwards": 2, "tokens_per_forward": 1.5})

    def test_choices_are_numbered(self):
        answer = self.chat("world", n=3)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])

    def test_streams(self):
        chunks = list(self.chat("world", stream=True, stream_options={"include_usage": True}))
        self.assertEqual(len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}), 1)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, "Hello, world!")
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.total_tokens, 12)
        self.assertEqual(chunks[1].model_extra["quicksilver"], {"step": 1, "block": 0})

    def test_the_stream_helper_accumulates_every_choice(self):
        with self.client.chat.completions.stream(model="m", messages=messages("world"), n=2) as stream:
            events = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertIn("content.delta", events)
        self.assertEqual([choice.message.content for choice in final.choices], ["Hello, world!"] * 2)
        self.assertEqual(final.choices[1].finish_reason, "stop")

    def test_the_asynchronous_client_streams(self):
        async def run():
            async with openai.AsyncOpenAI(base_url=self.url, api_key="unused") as client:
                stream = await client.chat.completions.create(model="m", messages=messages("world"), stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        self.assertEqual(asyncio.run(run()), "Hello, world!")

    def test_hostile_text_arrives_unchanged(self):
        self.assertEqual(self.chat("hostile").choices[0].message.content, HOSTILE)
        chunks = self.chat("hostile", stream=True)
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), HOSTILE)

    def test_completes(self):
        answer = self.client.completions.create(model="m", prompt=["a", "b"], n=2, echo=True)
        self.assertEqual([choice.text for choice in answer.choices], ["aHello, a!"] * 2 + ["bHello, b!"] * 2)
        self.assertEqual(answer.usage.prompt_tokens, 18)
        chunks = list(self.client.completions.create(model="m", prompt="long", stream=True))
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), "Hello, long!")
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")
        self.assertEqual(self.client.completions.create(model="m", prompt=[1, 2, 3]).object, "text_completion")

    def test_log_probabilities_cover_the_text_token_by_token(self):
        answer = self.chat("logprobs", logprobs=True, top_logprobs=2)
        tokens = answer.choices[0].logprobs.content
        self.assertEqual(bytes(b for token in tokens for b in token.bytes).decode(), answer.choices[0].message.content)
        self.assertEqual([token.logprob for token in tokens], [0, -0.5, -1, -1.5])
        self.assertEqual([len(token.top_logprobs) for token in tokens], [2] * 4)
        self.assertEqual(tokens[2].token, "\ufffd")
        self.assertEqual(tokens[0].top_logprobs[0].logprob, -9999.0)
        text = b""
        for chunk in self.chat("logprobs", logprobs=True, stream=True):
            choice = chunk.choices[0]
            piece = bytes(b for token in (choice.logprobs.content if choice.logprobs else []) for b in token.bytes)
            self.assertEqual(piece.decode(), choice.delta.content or "")
            text += piece
        self.assertEqual(text.decode(), "Hi \u00e9")
        with self.client.chat.completions.stream(model="m", messages=messages("logprobs"), logprobs=True) as stream:
            for _ in stream:
                pass
            self.assertEqual(len(stream.get_final_completion().choices[0].logprobs.content), 4)

    def test_completions_have_log_probabilities_of_their_own_shape(self):
        choice = self.client.completions.create(model="m", prompt="logprobs", logprobs=1).choices[0]
        self.assertEqual(choice.logprobs.tokens, ["Hi", " ", "\ufffd", "\ufffd"])
        self.assertEqual(choice.logprobs.token_logprobs, [0, -0.5, -1, -1.5])
        self.assertEqual(choice.logprobs.text_offset, [8, 10, 11, 11])
        self.assertEqual(choice.logprobs.top_logprobs[0], {"Hi": 0, "a": -9999})
        chunks = list(self.client.completions.create(model="m", prompt="logprobs", logprobs=0, stream=True))
        parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
        self.assertEqual([offset for part in parts for offset in part.text_offset], [8, 10, 11, 11])

    def test_an_answer_says_what_was_run(self):
        extension = self.chat("logprobs").model_extra["quicksilver"]
        self.assertEqual((extension["policy"], extension["cache"], extension["approximate"]), ("token_edit", "dual", True))

    def test_what_the_service_refuses_is_named_as_it_was_asked_for(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat("refused", extra_body={"quicksilver": {"steps": 9}})
        self.assertEqual(caught.exception.param, "quicksilver.steps")
        self.assertIn("quicksilver.steps (9) must be 1.", caught.exception.message)

    def test_lists_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["m", "org/name"])
        self.assertEqual(self.client.models.retrieve("org/name").id, "org/name")
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.models.retrieve("none")
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_errors_are_typed(self):
        cases = [
            (openai.BadRequestError, "invalid_value", "temperature", lambda: self.chat("x", temperature=3)),
            (openai.BadRequestError, "context_length_exceeded", "messages", lambda: self.chat("too long")),
            (openai.NotFoundError, "model_not_found", "model", lambda: self.client.chat.completions.create(
                model="none", messages=messages("x"))),
            (openai.BadRequestError, "invalid_value", "messages[0].role", lambda: self.client.chat.completions.create(
                model="m", messages=[{"role": "robot", "content": "x"}])),
        ]
        for kind, code, param, call in cases:
            with self.subTest(code=code, param=param), self.assertRaises(kind) as caught:
                call()
            error = caught.exception
            self.assertEqual((error.code, error.param, error.type), (code, param, "invalid_request_error"))
            self.assertTrue(error.request_id)
            self.assertTrue(error.message)

    def test_an_overload_is_retried_when_told(self):
        start = time.monotonic()
        self.assertEqual(self.chat("flaky one").choices[0].message.content, "attempt 3")
        self.assertGreater(time.monotonic() - start, 1.9)  # Two Retry-After of one second.

    def test_an_overload_is_typed_when_retries_end(self):
        client = self.client.with_options(max_retries=0)
        with self.assertRaises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="m", messages=messages("no worker"))
        self.assertEqual(caught.exception.status_code, 503)
        self.assertEqual(caught.exception.code, "no_ready_worker")
        self.assertEqual(caught.exception.response.headers["retry-after"], "2")

    def test_what_is_not_delivered_is_not_retried(self):
        start = time.monotonic()
        with self.assertRaises(openai.InternalServerError) as caught:
            self.chat("x", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
        self.assertEqual((caught.exception.status_code, caught.exception.code), (501, "not_implemented"))
        with self.assertRaises(openai.InternalServerError) as caught:
            self.client.responses.create(model="m", input="x")
        self.assertEqual(caught.exception.status_code, 501)
        self.assertLess(time.monotonic() - start, 0.5)

    def test_service_tiers_and_cache_keys_reach_the_scheduler(self):
        for tier, text, echoed in [("priority", "interactive k", "priority"), ("flex", "batch k", "default"),
                                   ("auto", "default k", "default")]:
            answer = self.chat("terms", service_tier=tier, prompt_cache_key="k")
            self.assertEqual(answer.choices[0].message.content, text)
            self.assertEqual(answer.service_tier, echoed)
            chunks = list(self.chat("terms", service_tier=tier, prompt_cache_key="k", stream=True))
            self.assertEqual({chunk.service_tier for chunk in chunks}, {echoed})
        realtime = self.chat("terms", extra_body={"realtime": True})
        self.assertEqual(realtime.choices[0].message.content, "interactive ")

    def test_an_answer_tells_what_was_cached_and_what_happened(self):
        answer = self.chat("terms", extra_body={"quicksilver": {"latency_target_ms": 800}})
        self.assertEqual(answer.usage.prompt_tokens_details.cached_tokens, 5)
        extension = answer.model_extra["quicksilver"]
        self.assertEqual((extension["resumed"], extension["deadline_reached"]), (1, True))
        chunks = list(self.chat("terms", stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[-1].usage.prompt_tokens_details.cached_tokens, 5)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat("terms", extra_body={"quicksilver": {"latency_target_ms": 0}})
        self.assertEqual(caught.exception.param, "quicksilver.latency_target_ms")

    def test_a_limit_is_typed_and_says_when_to_come_back(self):
        client = self.client.with_options(max_retries=0)
        with self.assertRaises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="m", messages=messages("limited"))
        self.assertEqual(caught.exception.code, "rate_limit_exceeded")
        headers = caught.exception.response.headers
        self.assertEqual((headers["retry-after"], headers["x-ratelimit-remaining-requests"],
                          headers["x-ratelimit-reset-requests"]), ("7", "0", "7s"))

    def test_a_failure_midway_raises(self):
        text = ""
        with self.assertRaises(openai.APIError) as caught:
            for chunk in self.chat("fails midway", stream=True):
                text += chunk.choices[0].delta.content or ""
        self.assertEqual(text, "Hello")
        self.assertEqual((caught.exception.code, caught.exception.type), ("worker_lost", "server_error"))

    def test_canvases_do_not_disturb_the_text(self):
        fields = {"extra_body": {"quicksilver": {"canvases": True}}}
        chunks = list(self.chat("canvas", stream=True, **fields))
        extensions = [(chunk.model_extra or {}).get("quicksilver", {}) for chunk in chunks]
        frames = [extension["frame"] for extension in extensions if "frame" in extension]
        self.assertEqual([[span["op"] for span in frame["spans"]] for frame in frames],
                         [["replace"], ["commit"], ["final", "commit"], ["final"]])
        self.assertEqual("".join(s["text"] for frame in frames for s in frame["spans"] if s["op"] == "final"), "abcdef")
        self.assertEqual([frame["committed"] for frame in frames], [0, 0, 1, 4])
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, "abcdef")
        with self.client.chat.completions.stream(model="m", messages=messages("canvas"), **fields) as stream:
            for _ in stream:
                pass
            self.assertEqual(stream.get_final_completion().choices[0].message.content, "abcdef")

    def test_diffusing_needs_a_stream_of_one_choice(self):
        for fields in ({}, {"stream": True, "n": 2}):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.chat("canvas", extra_body={"diffusing": True}, **fields)
            self.assertEqual(caught.exception.param, "diffusing")

    def test_a_diffusing_stream_replaces(self):
        chunks = list(self.chat("canvas", stream=True, extra_body={"diffusing": True}))
        texts = [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content]
        self.assertEqual(texts, ["\u2591" * 4, "ab" + "\u2591" * 3, "abcd", "abcdef"])
        self.assertTrue(all(chunk.model_extra["quicksilver"]["mode"] == "replace" for chunk in chunks))
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    SERVER = sys.argv.pop(1)
    unittest.main(verbosity=2)
