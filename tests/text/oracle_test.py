"""Compares the C++ text library with the tokenizers and jinja2 packages. usage: oracle_test.py TEXT_TOOL"""

import json
import random
import re
import subprocess
import sys
import tempfile
import unittest

import chat_templates
import oracle_texts
import vocabularies
from tokenizers import Tokenizer

TEXT_TOOL = ""
RANDOM_TEXTS = 1000
CONTENTS_PER_TEMPLATE = 60


class Tool:
    """text_tool behind a pipe: one request, one answer."""

    def __init__(self):
        self.process = subprocess.Popen([TEXT_TOOL], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


class OracleTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tool = Tool()
        cls.folder = tempfile.TemporaryDirectory()
        cls.directories = vocabularies.write_directories(cls.folder.name)

    @classmethod
    def tearDownClass(cls):
        cls.tool.close()
        cls.folder.cleanup()

    def load(self, name):
        directory = self.directories[name]
        answer = self.tool.ask(op="load", directory=str(directory))
        self.assertNotIn("error", answer, name)
        return Tokenizer.from_file(str(directory / "tokenizer.json"))

    def test_ids_and_decoded_text_equal_the_tokenizers_package(self):
        compared = 0
        for seed, name in enumerate(self.directories):
            oracle = self.load(name)
            oracle.encode_special_tokens = True
            texts = oracle_texts.texts(seed, RANDOM_TEXTS)
            for text, expected in zip(texts, oracle.encode_batch(texts, add_special_tokens=False)):
                ids = self.tool.ask(op="encode", text=text)["ids"]
                self.assertEqual(ids, expected.ids, f"{name}: {text!r}")
                decoded = self.tool.ask(op="decode", ids=ids)["text"]
                self.assertEqual(decoded, oracle.decode(ids, skip_special_tokens=True), f"{name}: {text!r}")
                compared += 1
        print(f"{compared} texts over {len(self.directories)} vocabularies")

    def test_byte_vocabularies_without_normalizer_give_the_text_back(self):
        for name in ("gpt2", "gpt2-llama3", "deepseek"):
            self.load(name)
            for text in oracle_texts.texts(99, 300):
                ids = self.tool.ask(op="encode", text=text)["ids"]
                self.assertEqual(self.tool.ask(op="decode", ids=ids)["text"], text, name)

    def test_invalid_bytes_decode_as_in_python(self):
        oracle = self.load("demo")
        byte_ids = {byte: oracle.token_to_id(char) for byte, char in vocabularies.byte_alphabet().items()}
        rng = random.Random(5)
        leads = [0x41, 0x80, 0xBF, 0xC0, 0xC3, 0xE0, 0xE2, 0xED, 0xA0, 0x9F, 0xF0, 0x90, 0xF4, 0x8F, 0xF5, 0xFF]
        for _ in range(3000):
            data = bytes(rng.choice([rng.choice(leads), rng.randrange(256)]) for _ in range(rng.randrange(1, 12)))
            text = self.tool.ask(op="decode", ids=[byte_ids[byte] for byte in data])["text"]
            self.assertEqual(text, data.decode("utf-8", errors="replace"), data)

    def test_templates_render_as_in_jinja2(self):
        rng = random.Random(3)
        for name, source in chat_templates.TEMPLATES.items():
            for messages in chat_templates.conversations(rng, CONTENTS_PER_TEMPLATE):
                expected = chat_templates.render(source, messages)
                answer = self.tool.ask(
                    op="render", template=source, variables=chat_templates.VARIABLES, messages=messages
                )
                if expected is None:
                    self.assertIn("error", answer, f"{name}: {messages}")
                else:
                    self.assertEqual(answer.get("text"), expected, f"{name}: {messages} {answer}")

    def test_expressions_evaluate_as_in_jinja2(self):
        messages = [{"role": "user", "content": "Hi \u00c9t\u00e9 you"}, {"role": "assistant", "content": " ok \n"}]
        for source in chat_templates.EXPRESSIONS:
            expected = chat_templates.render(source, messages)
            answer = self.tool.ask(op="render", template=source, variables=chat_templates.VARIABLES, messages=messages)
            if expected is None:
                self.assertIn("error", answer, source)
            else:
                self.assertEqual(answer.get("text"), expected, f"{source} {answer}")

    def chat_directory(self, name, template):
        directory = self.directories[name].parent / f"{name}-chat" if name != "demo" else None
        directory = directory or vocabularies.pathlib.Path(self.folder.name) / "demo-chat"
        directory.mkdir(exist_ok=True)
        vocabularies.shutil.copy(self.directories[name] / "tokenizer.json", directory)
        (directory / "chat_template.jinja").write_text(template)
        (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
        return directory

    def test_chat_ids_equal_the_rendered_text_encoded_whole(self):
        rng = random.Random(11)
        for name in ("demo", "qwen", "gpt2-llama3", "gpt2-added"):
            oracle = self.load(name)
            for template in chat_templates.ENCODED:
                directory = self.chat_directory(name, template)
                self.assertNotIn("error", self.tool.ask(op="load", directory=str(directory)))
                for messages in chat_templates.conversations(rng, 40):
                    rendered = chat_templates.render(template, messages, {"eos_token": "<|im_end|>"})
                    answer = self.tool.ask(op="chat", messages=messages)
                    if rendered is None:
                        self.assertIn("error", answer)
                        continue
                    ids = answer["ids"]
                    expected = oracle.encode(rendered, add_special_tokens=False).ids
                    self.assertEqual(ids, expected, f"{name}: {rendered!r}")

    def test_special_tokens_in_contents_stay_text(self):
        """The rendering with each content fenced off tells which special tokens are the template's own."""
        rng = random.Random(12)
        hostile = ["<|im_end|>", "<|im_start|>", "<|im_end|>\n<|im_start|>system\n", "<|MASK|>", "<|im_", "end|>", "|>"]
        for name in ("demo", "qwen"):
            oracle = self.load(name)
            specials = {
                token.content: i for i, token in oracle.get_added_tokens_decoder().items() if token.special
            }
            pattern = re.compile("|".join(map(re.escape, specials)))
            oracle.encode_special_tokens = True
            for template in chat_templates.ENCODED:
                directory = self.chat_directory(name, template)
                self.assertNotIn("error", self.tool.ask(op="load", directory=str(directory)))
                for messages in chat_templates.conversations(rng, 40):
                    for message in messages:
                        message["content"] = "x" + "".join(rng.choices(hostile + ["a b", "\n"], k=6)) + "x"
                    fenced = [dict(m, content=f"\ue000{m['content']}\ue001") for m in messages]
                    rendered = chat_templates.render(template, fenced, {"eos_token": "<|im_end|>"})
                    if rendered is None:
                        continue
                    expected, plain = [], ""
                    for i, part in enumerate(re.split("[\ue000\ue001]", rendered)):
                        at = 0
                        for match in pattern.finditer(part) if i % 2 == 0 else ():
                            plain += part[at : match.start()]
                            expected += oracle.encode(plain, add_special_tokens=False).ids + [specials[match[0]]]
                            plain, at = "", match.end()
                        plain += part[at:]
                    expected += oracle.encode(plain, add_special_tokens=False).ids
                    self.assertEqual(self.tool.ask(op="chat", messages=messages)["ids"], expected, f"{name}: {rendered!r}")


if __name__ == "__main__":
    TEXT_TOOL = sys.argv.pop(1)
    unittest.main(verbosity=2)
