"""Training of the demo model, or of its autoregressive twin (--causal), on a CPU.

    python3 train.py --folder OUT --steps 12000 [--resume] [--causal]

OUT holds tokenizer.json and receives config.json, generation_config.json, model.safetensors (the averaged weights, in
bf16), state.pt (weights and optimizer, for --resume) and log.jsonl.  The learning rate depends on the step alone:
warm-up, constant, then linear to zero over the last part.  A number written into OUT/steps changes the total while it
runs.

Two single-thread processes that average their gradients are faster than one process with two threads.
"""
import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from batches import assemble, assemble_causal, groups
from network import forward, init_weights, make_config, save_safetensors, shapes
from tokenizer import Tokenizer

BETA1, BETA2, WEIGHT_DECAY, CLIP = 0.9, 0.98, 0.1, 1.0
MOMENTUM, NEWTON_SCHULZ = 0.95, (3.4445, -4.7750, 2.0315)
UPDATE_RMS = 0.2  # of an orthogonalised update, about that of AdamW
LOG_STEPS, SAVE_STEPS = 50, 250
GATHER_TIMEOUT_S = 600


def views(flat, shape_of):
    """Named views of a flat vector."""
    out, at = {}, 0
    for name, shape in shape_of.items():
        size = math.prod(shape)
        out[name] = flat[at:at + size].view(shape)
        at += size
    return out


def orthogonalise(matrices):
    """Nearly the closest orthogonal matrices of a stack [n, rows, columns], by five Newton-Schulz steps in bf16."""
    x = matrices.bfloat16()
    x = x.mT if x.shape[1] > x.shape[2] else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.mT if matrices.shape[1] > matrices.shape[2] else x
    return x.float() * (UPDATE_RMS * max(matrices.shape[1:]) ** 0.5)


def is_matrix(name):
    """Whether Muon updates the tensor; embeddings and norm weights are AdamW's."""
    return name.endswith("_proj.weight")


class Optimizer:
    """Muon for the projections and AdamW for the rest, on one flat vector, with an average of the weights.

    Each process orthogonalises its share of the matrices and puts them into the shared vector `updates`; then every
    process applies the same update.
    """

    def __init__(self, flat, shape_of, options, rank, updates, barrier):
        self.flat, self.options, self.rank, self.updates, self.barrier = flat, options, rank, updates, barrier
        parts = [(math.prod(shape), len(shape) == 2, is_matrix(name)) for name, shape in shape_of.items()]
        self.decay = torch.cat([torch.full((size,), WEIGHT_DECAY * decays) for size, decays, _ in parts])
        self.by_muon = torch.cat([torch.full((size,), matrix) for size, _, matrix in parts])
        self.first, self.second, self.average = torch.zeros_like(flat), torch.zeros_like(flat), flat.clone()
        self.step = 0
        shared = views(updates, shape_of)
        stacks = {}
        for name in filter(is_matrix, shape_of):
            stacks.setdefault(shape_of[name], []).append((name, shared[name]))
        self.stacks = [stack[rank::options.workers] for stack in stacks.values()]
        self.shape_of = shape_of

    def state(self):
        """What --resume needs."""
        return {"flat": self.flat, "first": self.first, "second": self.second, "average": self.average,
                "step": self.step}

    def load(self, state):
        """Restores state()."""
        for name in ("flat", "first", "second", "average"):
            getattr(self, name).copy_(state[name])
        self.step = state["step"]

    def schedule(self, total):
        """Factor of the learning rates for the coming step."""
        left = (total - self.step) / (self.options.decay_share * total)
        return max(0.0, min(1.0, (self.step + 1) / self.options.warmup, left))

    def share_orthogonal(self, gradient):
        """Writes this process's part of Muon's update (with Nesterov momentum) into the shared vector."""
        ahead = views(gradient.lerp(self.first, MOMENTUM), self.shape_of)
        for stack in self.stacks:
            result = orthogonalise(torch.stack([ahead[name] for name, _ in stack]))
            for (_, target), update in zip(stack, result):
                target.copy_(update)

    def update(self, gradient, factor):
        """One clipped step."""
        gradient *= min(1.0, CLIP / (gradient.norm().item() + 1e-6))
        self.step += 1
        self.first.lerp_(gradient, 1 - torch.where(self.by_muon, MOMENTUM, BETA1))
        self.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        self.share_orthogonal(gradient)
        scale = (self.second / (1 - BETA2 ** self.step)).sqrt_().add_(1e-9)
        adam = self.first.div(scale).mul_(self.options.adam_rate / (1 - BETA1 ** self.step))
        self.barrier.wait(GATHER_TIMEOUT_S)
        change = torch.where(self.by_muon, self.updates * self.options.rate, adam)
        self.flat.mul_(1 - self.options.rate * factor * self.decay).sub_(change, alpha=factor)
        self.average.lerp_(self.flat, 1 - min(self.options.average, (1 + self.step) / (10 + self.step)))


class Meter:
    """Running figures of one process, printed and logged."""

    def __init__(self, path, workers):
        self.path, self.workers, self.began = path, workers, time.time()
        self.tokens = self.rows = self.examples = 0
        self.reset()

    def reset(self):
        """Starts a new window of loss and accuracy."""
        self.loss = self.masked = self.right = 0

    def add(self, batch, logits, losses):
        """Counts one batch."""
        self.tokens, self.rows, self.examples = (self.tokens + batch.tokens, self.rows + batch.ids.numel(),
                                                 self.examples + batch.ids.shape[0])
        self.loss, self.masked = self.loss + losses.sum().item(), self.masked + len(losses)
        self.right += (logits.argmax(-1) == batch.targets).sum().item()

    def log(self, step, rate):
        """One line; counts of this process times the number of processes."""
        seconds, n = time.time() - self.began, self.workers
        line = {"step": step, "minutes": round(seconds / 60, 2), "nll": round(self.loss / self.masked, 4),
                "masked_accuracy": round(self.right / self.masked, 4), "tokens": self.tokens * n, "rows": self.rows * n,
                "examples": self.examples * n, "rows_per_s": round(self.rows * n / seconds), "rate": round(rate, 6)}
        print(json.dumps(line), flush=True)
        with open(self.path, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        self.reset()


def total_steps(options):
    """The total of OUT/steps if that file exists, else of the command line."""
    path = Path(options.folder) / "steps"
    return int(path.read_text()) if path.exists() else options.steps


def save(folder, optimizer, shape_of):
    """Exports the averaged weights and writes the resumable state; each file replaces the old one at once."""
    save_safetensors(folder / "model.safetensors.new", views(optimizer.average, shape_of))
    torch.save(optimizer.state(), folder / "state.pt.new")
    for name in ("model.safetensors", "state.pt"):
        (folder / (name + ".new")).replace(folder / name)


def worker(rank, options, config, gradients, updates, shared_total, barrier):
    """One process: draws its own batches, shares gradients, repeats the common update."""
    torch.set_num_threads(1)
    folder, tokenizer = Path(options.folder), Tokenizer(Path(options.folder) / "tokenizer.json")
    shape_of = shapes(config)
    flat = torch.cat([w.reshape(-1) for w in init_weights(config, options.seed).values()])
    optimizer = Optimizer(flat, shape_of, options, rank, updates, barrier)
    if options.resume:
        optimizer.load(torch.load(folder / "state.pt"))
    weights = {name: view.requires_grad_() for name, view in views(flat, shape_of).items()}
    for name, view in views(gradients[rank], shape_of).items():
        weights[name].grad = view
    seed = options.seed * 1000000 + optimizer.step * 10 + rank  # a resumed run draws new data
    rng = random.Random(seed)
    stream = groups(tokenizer, options.block, options.rows, seed, options.fim_share, options.plain_weight,
                    options.causal)
    meter = Meter(folder / "log.jsonl", options.workers)
    while True:
        if rank == 0:
            shared_total[0] = total_steps(options)
        barrier.wait(GATHER_TIMEOUT_S)
        total = int(shared_total[0])
        if optimizer.step >= total:
            break
        group = next(stream)
        batch = (assemble_causal(group, config["pad_token_id"]) if options.causal else
                 assemble(group, options.block, config["pad_token_id"], config["mask_token_id"], rng))
        logits = forward(config, weights, batch.ids, batch.positions, batch.mask, batch.rows, torch.bfloat16)
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        gradients[rank].zero_()
        losses.mean().backward()
        meter.add(batch, logits, losses.detach())
        barrier.wait(GATHER_TIMEOUT_S)
        factor = optimizer.schedule(total)
        with torch.no_grad():
            optimizer.update(sum(gradients) / options.workers, factor)
        if rank == 0 and optimizer.step % LOG_STEPS == 0:
            meter.log(optimizer.step, factor * options.rate)
        if rank == 0 and optimizer.step % SAVE_STEPS == 0:
            save(folder, optimizer, shape_of)
    if rank == 0:
        save(folder, optimizer, shape_of)


def parse_options():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True, help="holds tokenizer.json, receives everything else")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--causal", action="store_true", help="next-token prediction: the autoregressive twin (Qwen3)")
    parser.add_argument("--resume", action="store_true", help="continue from state.pt")
    for name, default in (("hidden", 256), ("layers", 5), ("heads", 8), ("kv-heads", 4), ("head-dim", 32),
                          ("intermediate", 640), ("block", 8), ("warmup", 150), ("seed", 1), ("workers", 2)):
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--rows", type=int, default=2048, help="rows per process and step")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate of Muon")
    parser.add_argument("--adam-rate", type=float, default=2.5e-3, help="peak learning rate of AdamW")
    parser.add_argument("--decay-share", type=float, default=0.4, help="part of the steps that decays the rate to zero")
    parser.add_argument("--average", type=float, default=0.998, help="weight average per step")
    parser.add_argument("--fim-share", type=float, default=0.07)
    parser.add_argument("--plain-weight", type=float, default=1.0,
                        help="weight of the templates without predicates and maps")
    options = parser.parse_args()
    options.block = 1 if options.causal else options.block
    return options


def main():
    options = parse_options()
    folder, tokenizer = Path(options.folder), Tokenizer(Path(options.folder) / "tokenizer.json")
    config = make_config(options, tokenizer.size, tokenizer.special)
    stops = [config["eos_token_id"], config["pad_token_id"]]
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": stops, "pad_token_id": config["pad_token_id"]}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    size = sum(math.prod(shape) for shape in shapes(config).values())
    print(json.dumps({"parameters": size, **vars(options)}), flush=True)
    gradients = [torch.zeros(size).share_memory_() for _ in range(options.workers)]
    updates, total = torch.zeros(size).share_memory_(), torch.zeros(1, dtype=torch.int64).share_memory_()
    barrier = mp.get_context("fork").Barrier(options.workers)
    arguments = (options, config, gradients, updates, total, barrier)
    mp.start_processes(worker, arguments, options.workers, start_method="fork")


if __name__ == "__main__":
    main()
