"""The tokenizer: round trips, special tokens and the property that copying relies on."""
import json
import random
import unicodedata
import unittest
from itertools import islice

import support
from generator import training_stream
from names import identifier
from tokenizer import SPECIALS, Tokenizer, chat

OTHER_TEXTS = ["naïve café 😀 x_1=2**10\n\n\t end  ", "日本語 and עברית", "a'll we're I'M 3.14", "أهلا، ١٢٣ يا عالم!",
               "e\u0301"]


class TokenizerTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tokenizer = Tokenizer(support.DEMO / "tokenizer.json")
        cls.config = json.loads((support.DEMO / "config.json").read_text(encoding="utf-8"))

    def test_round_trips(self):
        texts = [text for task in islice(training_stream(3), 1000) for text in (task.prompt, task.answer)]
        for text in texts + OTHER_TEXTS:
            self.assertEqual(self.tokenizer.decode(self.tokenizer.encode(text)), unicodedata.normalize("NFC", text))

    def test_special_tokens_end_the_vocabulary_of_the_config(self):
        size = self.config["vocab_size"]
        self.assertEqual([self.tokenizer.special[s] for s in SPECIALS], list(range(size - len(SPECIALS), size)))
        self.assertEqual(self.tokenizer.size, size)
        self.assertEqual(self.config["mask_token_id"], self.tokenizer.special["<|MASK|>"])
        self.assertEqual(self.config["eos_token_id"], self.tokenizer.special["<|im_end|>"])

    def test_a_name_has_the_same_pieces_after_every_mark(self):
        rng = random.Random(1)
        for name in {identifier(rng) for _ in range(500)}:
            pieces = {tuple(self.tokenizer.encode(mark + name)[1:]) for mark in ("(", "[", "_")}
            self.assertEqual(len(pieces), 1, name)

    def test_chat_has_no_system_turn(self):
        self.assertEqual(chat("x"), "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")

    def test_tensor_parallel_sizes_divide(self):
        for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
            self.assertEqual(self.config[key] % 4, 0, key)


if __name__ == "__main__":
    unittest.main()
