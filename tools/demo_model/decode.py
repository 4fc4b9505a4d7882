"""Reference decoding in PyTorch: greedy block diffusion without a cache (the exact cache gives the same result)."""
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from network import NO_SIGHT, forward, load_safetensors
from tokenizer import Tokenizer


@dataclass
class Answer:
    """Decoded ids up to and including the stop token, denoising forwards and started blocks."""
    ids: list
    forwards: int
    blocks: int


class Decoder:
    """A checkpoint folder, ready to decode."""

    def __init__(self, folder):
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.weights = load_safetensors(folder / "model.safetensors")
        self.tokenizer = Tokenizer(folder / "tokenizer.json")
        self.stops = {self.config["eos_token_id"], self.config["pad_token_id"]}

    def ask(self, text, threshold, tokens_max):
        """(prompt ids, Answer, text) of one prompt, special strings included."""
        ids = self.tokenizer.encode(text)
        answer = self.generate(ids, threshold, tokens_max)
        return ids, answer, self.tokenizer.decode(answer.ids)

    @torch.no_grad()
    def generate(self, prompt, threshold, tokens_max):
        """Commits, per forward, every masked token above the threshold and at least the surest one; a threshold of
        None commits one token per forward."""
        block, mask_id = self.config["block_size"], self.config["mask_token_id"]
        ids, answer = list(prompt), Answer([], 0, 0)
        while len(ids) < len(prompt) + tokens_max:
            fresh = len(ids)
            ids += [mask_id] * (block - fresh % block)
            masked = list(range(fresh, len(ids)))
            answer.blocks += 1
            while masked:
                masked = self.commit(ids, masked, threshold)
                answer.forwards += 1
                end = self.finished(ids, len(prompt))
                if end is not None:
                    answer.ids = ids[len(prompt):end]
                    return answer
        answer.ids = ids[len(prompt):]
        return answer

    def commit(self, ids, masked, threshold):
        """One forward; writes the committed tokens into ids and returns the positions still masked."""
        positions = torch.arange(len(ids))
        blocks = positions // self.config["block_size"]
        sight = torch.zeros(len(ids), len(ids)).masked_fill_(blocks.unsqueeze(0) > blocks.unsqueeze(1), NO_SIGHT)
        logits = forward(self.config, self.weights, torch.tensor([ids]), positions.unsqueeze(0), sight[None, None],
                         torch.tensor(masked))
        probabilities = torch.softmax(logits, -1)
        logits[:, self.config["mask_token_id"]] = float("-inf")
        best = logits.argmax(-1)
        confidence = probabilities.gather(1, best.unsqueeze(1)).squeeze(1)
        surest = int(confidence.argmax())
        left = []
        for row, position in enumerate(masked):
            if row == surest or threshold is not None and confidence[row] > threshold:
                ids[position] = int(best[row])
            else:
                left.append(position)
        return left

    def finished(self, ids, start):
        """End of the answer when a stop token stands before every mask, else None."""
        for position in range(start, len(ids)):
            if ids[position] == self.config["mask_token_id"]:
                return None
            if ids[position] in self.stops:
                return position + 1
        return None
