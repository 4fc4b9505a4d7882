#!/usr/bin/env python3
"""A bidirectional (LLaDA-style) checkpoint through the whole service: random weights, the demo model's tokenizer, two ranks."""
import pathlib
import sys
import tempfile
import unittest

from cluster import Cluster, random_checkpoint

TOKENS = 40


def setUpModule():
    global cluster, folder
    folder = tempfile.TemporaryDirectory()
    checkpoint = pathlib.Path(folder.name) / "model"
    random_checkpoint(checkpoint, "--family=llada", "--hidden=128", "--layers=2", "--heads=4", "--kv-heads=4", "--mlp=256",
                      "--positions=256")
    cluster = Cluster(ranks=2, model=checkpoint)
    cluster.__enter__()


def tearDownModule():
    cluster.__exit__(None, None, None)
    folder.cleanup()


class Llada(unittest.TestCase):
    def ask(self, **extension):
        reply = cluster.chat("def f(x):", max_tokens=TOKENS, seed=1, quicksilver=extension)
        return reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"], reply["quicksilver"]["forwards"]

    def test_the_default_commits_one_token_a_forward(self):
        text, tokens, forwards = self.ask()
        self.assertTrue(text)
        self.assertLessEqual(tokens, TOKENS)
        self.assertLessEqual(forwards, TOKENS)

    def test_steps_and_blocks_are_the_clients_to_choose(self):
        _, tokens, forwards = self.ask(block_length=8, steps=10)
        if tokens == TOKENS:  # A stop token may end it sooner.
            self.assertEqual(forwards, 10)

    def test_guidance_and_random_remasking_change_the_answer_but_not_its_determinism(self):
        plain = self.ask()
        for extension in ({"guidance_scale": 2.0}, {"remasking": "random"}):
            first = self.ask(**extension)
            self.assertEqual(first, self.ask(**extension))
            self.assertNotEqual(first[0], plain[0], extension)

    def test_a_threshold_of_zero_commits_a_block_a_forward(self):
        _, _, forwards = self.ask(policy="threshold", confidence_threshold=0.0, block_length=8)
        self.assertLessEqual(forwards, TOKENS // 8)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    unittest.main(verbosity=2)
