"""Byte-level BPE: trainer, `tokenizer.json` writer in the Hugging Face format, and a small encoder and decoder.

    python3 tokenizer.py --folder OUT [--size 2048]     trains on the generator's text and writes both files

The last merges, and no others, join a space or a dot to a word, and only to a whole frequent word.  So a name has the
same pieces after every other mark, mostly also after a space, and copying it from the prompt is a matter of repeating
tokens.
"""
import argparse
import json
import re
import unicodedata
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>",
            "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
# The Qwen pattern, as written into tokenizer.json ...
HF_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
              r"\s+(?!\S)|\s+")
# ... and the same for Python's re: \p{L} is [^\W\d_], \p{N} is \d (equal on all but rare numerals).
PATTERN = re.compile(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|"
                     r"\s+(?!\S)|\s+")
CHAT_TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
                 "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
                 "{% endif %}")
CONTEXT_TOKENS_MAX = 512
SPACE_MERGES_SHARE = 0.3


def byte_alphabet():
    """GPT-2's reversible map from bytes to printable characters."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in visible:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


BYTE_TO_CHAR = byte_alphabet()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
SPACE = BYTE_TO_CHAR[32]
LETTERS = {char for byte, char in BYTE_TO_CHAR.items() if byte >= 128 or chr(byte).isalpha()}


def merge_pair(symbols, pair):
    """The symbols with every occurrence of the pair merged, left to right."""
    out, at = [], 0
    while at < len(symbols):
        if at + 1 < len(symbols) and (symbols[at], symbols[at + 1]) == pair:
            out.append(symbols[at] + symbols[at + 1])
            at += 2
        else:
            out.append(symbols[at])
            at += 1
    return out


class Trainer:
    """Greedy pair merging over distinct pre-tokens; ties go to the greater pair."""

    def __init__(self, texts):
        words = Counter()
        for text in texts:
            for piece in PATTERN.findall(unicodedata.normalize("NFC", text)):
                words["".join(BYTE_TO_CHAR[byte] for byte in piece.encode())] += 1
        self.pieces = [(list(word), count) for word, count in words.items()]
        self.vocabulary = {char: i for i, char in enumerate(sorted(BYTE_TO_CHAR.values(), key=CHAR_TO_BYTE.get))}
        self.merges = []
        self.counts, self.where = Counter(), defaultdict(set)

    @staticmethod
    def within_word(symbols):
        """Pairs inside a word or inside a run of marks and white space."""
        return [pair for pair in zip(symbols, symbols[1:]) if (pair[0][-1] in LETTERS) == (pair[1][0] in LETTERS)]

    @staticmethod
    def before_word(symbols):
        """A space and the whole word after it; single Latin letters stay apart, they are names."""
        whole = len(symbols) == 2 and symbols[0] in (SPACE, ".") and symbols[1][0] in LETTERS
        return [tuple(symbols)] if whole and len(symbols[1]) > 1 else []

    def run(self, size, pairs_of):
        """Merges until the vocabulary has `size` entries."""
        self.counts, self.where = Counter(), defaultdict(set)
        for i, (symbols, count) in enumerate(self.pieces):
            self.count(i, symbols, count, pairs_of)
        while len(self.vocabulary) < size:
            best = max(self.counts, key=lambda pair: (self.counts[pair], pair))
            self.merges.append(best)
            self.vocabulary[best[0] + best[1]] = len(self.vocabulary)
            for i in list(self.where[best]):
                symbols, count = self.pieces[i]
                for pair in pairs_of(symbols):
                    self.counts[pair] -= count
                    self.where[pair].discard(i)
                self.pieces[i] = (merge_pair(symbols, best), count)
                self.count(i, self.pieces[i][0], count, pairs_of)
            del self.counts[best]

    def count(self, i, symbols, count, pairs_of):
        """Adds one pre-token's pairs to the statistics."""
        for pair in pairs_of(symbols):
            self.counts[pair] += count
            self.where[pair].add(i)


def train(texts, size):
    """Returns (vocabulary, merges)."""
    trainer = Trainer(texts)
    merges = size - len(SPECIALS) - 256
    trainer.run(256 + merges - int(merges * SPACE_MERGES_SHARE), Trainer.within_word)
    trainer.run(256 + merges, Trainer.before_word)
    return trainer.vocabulary, trainer.merges


def write(vocabulary, merges, folder):
    """Writes tokenizer.json and tokenizer_config.json."""
    base = len(vocabulary)
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    added = [dict(id=base + i, content=text, **flags) for i, text in enumerate(SPECIALS)]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    split = dict(type="Split", pattern=dict(Regex=HF_PATTERN), behavior="Isolated", invert=False)
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix="", end_of_word_suffix="",
                 fuse_unk=False, byte_fallback=False, ignore_merges=False, vocab=vocabulary,
                 merges=[f"{left} {right}" for left, right in merges])
    document = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=dict(type="NFC"),
                    pre_tokenizer=dict(type="Sequence", pretokenizers=[split, byte_level]),
                    post_processor=byte_level, decoder=byte_level, model=model)
    config = dict(add_bos_token=False, add_prefix_space=False, bos_token=None, eos_token="<|im_end|>",
                  pad_token="<|endoftext|>", mask_token="<|MASK|>", unk_token=None, errors="replace",
                  clean_up_tokenization_spaces=False, split_special_tokens=False, model_max_length=CONTEXT_TOKENS_MAX,
                  tokenizer_class="Qwen2Tokenizer", chat_template=CHAT_TEMPLATE, additional_special_tokens=SPECIALS[1:],
                  added_tokens_decoder={str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added})
    for name, content in (("tokenizer.json", document), ("tokenizer_config.json", config)):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (Path(folder) / name).write_text(text + "\n", encoding="utf-8")


class Tokenizer:
    """Encoder and decoder of a tokenizer.json written by this module."""

    def __init__(self, path):
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        self.vocabulary = document["model"]["vocab"]
        self.ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(document["model"]["merges"])}
        self.special = {added["content"]: added["id"] for added in document["added_tokens"]}
        self.text_of = {i: symbol for symbol, i in self.vocabulary.items()}
        self.splitter = re.compile("(" + "|".join(map(re.escape, self.special)) + ")")
        self.size = len(self.vocabulary) + len(self.special)
        self.cache = {}

    def piece(self, text):
        """Ids of one pre-token."""
        if text not in self.cache:
            symbols = [BYTE_TO_CHAR[byte] for byte in text.encode()]
            while len(symbols) > 1:
                best = min(zip(symbols, symbols[1:]), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if best not in self.ranks:
                    break
                symbols = merge_pair(symbols, best)
            self.cache[text] = [self.vocabulary[symbol] for symbol in symbols]
        return self.cache[text]

    def encode(self, text):
        """Ids of a text; special strings become special ids."""
        ids = []
        for part in self.splitter.split(text):
            if part in self.special:
                ids.append(self.special[part])
            else:
                for text_piece in PATTERN.findall(unicodedata.normalize("NFC", part)):
                    ids += self.piece(text_piece)
        return ids

    def decode(self, ids):
        """Text of the ids, without special tokens."""
        symbols = "".join(self.text_of.get(i, "") for i in ids)
        return bytes(CHAR_TO_BYTE[char] for char in symbols).decode(errors="replace")


def chat(prompt):
    """The prompt as the chat template renders it."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def main():
    from generator import training_stream  # only the trainer needs the generator

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True, help="receives tokenizer.json and tokenizer_config.json")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    tasks = list(islice(training_stream(options.seed), 40000))
    texts = ["user assistant system\n"] + [task.prompt + "\n" + task.answer for task in tasks]
    write(*train(texts, options.size), options.folder)
    tokenizer = Tokenizer(Path(options.folder) / "tokenizer.json")
    for language in ("en", "ar"):
        chosen = [task for task in tasks if task.language == language]
        prompt = sum(len(tokenizer.encode(chat(task.prompt))) for task in chosen) / len(chosen)
        answer = sum(len(tokenizer.encode(task.answer)) + 1 for task in chosen) / len(chosen)
        print(f"{language}: {len(chosen)} tasks, mean prompt {prompt:.1f} tokens, mean answer {answer:.1f} tokens")


if __name__ == "__main__":
    main()
