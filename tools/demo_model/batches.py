"""Training batches: tasks as token ids, laid out for block diffusion or for next-token prediction.

Block diffusion: each example is laid out in one row sequence: the clean tokens of every block but the last, then two noisy versions of
the blocks that hold answer tokens.  A clean row sees clean rows of its own and earlier blocks; a noisy row sees clean
rows of earlier blocks and the noisy rows of its own block and version.  One forward therefore trains all answer blocks
under exactly the mask that decoding uses.  The second version masks the complement of the first.
"""
import random
import re
from dataclasses import dataclass

import torch

from generator import training_stream
from network import NO_SIGHT
from tokenizer import chat

VERSIONS = 2
POOL_TASKS = 2048


@dataclass
class Example:
    """One encoded task; blocks are counted without the padding after the last."""
    prompt: list
    answer: list
    noisy_blocks: int
    clean_blocks: int


@dataclass
class Batch:
    """Tensors of one step."""
    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    tokens: int


def split_body(body, rng):
    """(before, span, after): a random span of the body between word borders, now and then whole lines."""
    borders = [match.start() for match in re.finditer(r"\b|$", body)]
    if "\n" in body and rng.random() < 0.4:
        borders = [0] + [match.end() for match in re.finditer(r"\n", body)] + [len(body)]
    low, high = sorted(rng.sample(borders, 2))
    return body[:low], body[low:high], body[high:]


def fim_prompt(prompt, before, after):
    """The text that asks for what stands between `before` and `after` in the body of the prompt's function."""
    return f"<|fim_prefix|>{prompt}\n{before}<|fim_suffix|>{after}<|fim_middle|>"


def encode(tokenizer, task, rng, fim_share, block):
    """The task as an Example; a share of the tasks becomes fill-in-the-middle."""
    if rng.random() < fim_share:
        before, answer, after = split_body(task.answer, rng)
        prompt, stop = fim_prompt(task.prompt, before, after), "<|endoftext|>"
    else:
        prompt, answer, stop = chat(task.prompt), task.answer, "<|im_end|>"
    prompt, answer = tokenizer.encode(prompt), tokenizer.encode(answer) + [tokenizer.special[stop]]
    blocks = -(-(len(prompt) + len(answer)) // block)
    return Example(prompt, answer, blocks - len(prompt) // block, blocks - 1)


def example_rows(example, clean_blocks, block, causal):
    """Rows of an example beside others of up to `clean_blocks` blocks."""
    return clean_blocks * block if causal else (clean_blocks + VERSIONS * example.noisy_blocks) * block


def groups(tokenizer, block, rows, seed, fim_share, plain, causal=False):
    """Endless lists of examples of like size with at most `rows` rows after padding. Of next-token prediction blocks
    have one token."""
    rng, stream = random.Random(seed), training_stream(seed, plain)
    while True:
        pool = [encode(tokenizer, next(stream), rng, fim_share, block) for _ in range(POOL_TASKS)]
        pool.sort(key=lambda example: (0 if causal else example.noisy_blocks, example.clean_blocks))
        done, current = [], []
        for example in pool:
            clean = max(other.clean_blocks for other in current + [example])
            if current and (len(current) + 1) * example_rows(example, clean, block, causal) > rows:
                done.append(current)
                current = []
            current.append(example)
        rng.shuffle(done)  # the last, partial group is dropped
        yield from done


def draw_masks(rng, start, answer_start, blocks, block):
    """For each noisy block: its maskable positions and those the first version masks (1..n of them, uniform)."""
    drawn = []
    for low in range(start, start + blocks * block, block):
        cells = range(max(low, answer_start), low + block)
        drawn.append((set(cells), set(rng.sample(cells, rng.randint(1, len(cells))))))
    return drawn


def assemble(group, block, pad, mask_id, rng):
    """The tensors of one group of examples."""
    clean, noisy = (max(getattr(e, name) for e in group) * block for name in ("clean_blocks", "noisy_blocks"))
    size = clean + VERSIONS * noisy
    ids = torch.full((len(group), size), pad)
    positions = torch.zeros(len(group), size, dtype=torch.long)
    version = torch.full((len(group), size), -1)  # -1 padding, 0 clean, 1.. noisy
    rows, targets = [], []
    for e, example in enumerate(group):
        length, n_noisy = example.clean_blocks * block, example.noisy_blocks * block
        full = example.prompt + example.answer
        full += [pad] * (length + block - len(full))
        ids[e, :length], positions[e, :length] = torch.tensor(full[:length]), torch.arange(length)
        version[e, :length] = 0
        start = length + block - n_noisy
        drawn = draw_masks(rng, start, len(example.prompt), example.noisy_blocks, block)
        for copy in range(VERSIONS):
            at, line = clean + copy * noisy, full[start:]
            for cells, picked in drawn:
                for i in sorted((cells - picked or cells) if copy else picked):
                    line[i - start] = mask_id
                    rows.append(e * size + at + i - start)
                    targets.append(full[i])
            ids[e, at:at + n_noisy] = torch.tensor(line)
            positions[e, at:at + n_noisy] = torch.arange(start, start + n_noisy)
            version[e, at:at + n_noisy] = copy + 1
    tokens = sum(len(e.prompt) + len(e.answer) for e in group)
    return Batch(ids, positions, sight(positions // block, version), torch.tensor(rows), torch.tensor(targets), tokens)


def assemble_causal(group, pad):
    """The tensors of one group for next-token prediction: every row but the prompt's first ones is a target of the row
    before it; blocks have one token."""
    size = max(example.clean_blocks for example in group)
    ids = torch.full((len(group), size), pad)
    rows, targets = [], []
    for e, example in enumerate(group):
        full = example.prompt + example.answer
        ids[e, :len(full) - 1] = torch.tensor(full[:-1])
        for i in range(len(example.prompt), len(full)):
            rows.append(e * size + i - 1)
            targets.append(full[i])
    positions = torch.arange(size).expand(len(group), size)
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    mask = torch.zeros(size, size).masked_fill_(later, NO_SIGHT)[None, None]
    tokens = sum(len(e.prompt) + len(e.answer) for e in group)
    return Batch(ids, positions, mask, torch.tensor(rows), torch.tensor(targets), tokens)


def sight(block, version):
    """Additive mask [E, 1, S, S] from block numbers and versions."""
    bq, bk, vq, vk = block.unsqueeze(2), block.unsqueeze(1), version.unsqueeze(2), version.unsqueeze(1)
    see = (vk == 0) & ((bk < bq) | ((vq == 0) & (bk == bq))) | (vk == vq) & (vq > 0) & (bk == bq)
    see |= torch.eye(block.shape[1], dtype=torch.bool)  # padding rows see themselves
    return torch.zeros(see.shape).masked_fill_(~see, NO_SIGHT).unsqueeze(1)
