#!/usr/bin/env python3
"""The same steps in the machine's own PyTorch: bf16, SDPA, one CUDA graph a step, random weights of the published shapes.

Fused as ours are: one product for q, k, v, one for gate and up; rms_norm and SDPA are PyTorch's own kernels. A step is
forward, LM head of the block's rows, arg-max and its probability, and the best position's token written to the canvas.
A line of JSON a case, named as in bench_gpu. usage: bench_torch.py [--only PREFIXES]    Ends 77 where there is no PyTorch
or no GPU.
"""
import argparse
import dataclasses
import json
import statistics
import sys
import time

SKIPPED = 77
CONTEXT = 1024


@dataclasses.dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    theta: float
    epsilon: float
    head_norms: bool
    head_size: int = 128


SHAPES = {
    "llada-8b": Shape(4096, 32, 32, 32, 12288, 126464, 5e5, 1e-5, False),
    "sdar-1.7b": Shape(2048, 28, 16, 8, 6144, 151936, 1e6, 1e-6, True),
    "sdar-8b": Shape(4096, 36, 32, 8, 12288, 151936, 1e6, 1e-6, True),
    "toy": Shape(128, 2, 4, 2, 256, 512, 1e6, 1e-6, True, 64),
}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    what: str
    model: str
    sequences: int
    block: int
    context: int = CONTEXT
    whole_canvas: bool = False


def cases():
    yield Case("llada8b_bf16_1x32", "LLaDA-8B bf16, one block of 32, 1k context, batch 1", "llada-8b", 1, 32)
    yield Case("llada8b_bf16_64x32", "LLaDA-8B bf16, 64 x 32 rows, 1k context", "llada-8b", 64, 32)
    yield Case("llada8b_bf16_canvas1024", "LLaDA-8B bf16, full canvas of 1,024 rows", "llada-8b", 1, 32, CONTEXT - 32, True)
    for size in ("1.7b", "8b"):
        for sequences, block in ((1, 4), (1, 16), (1, 32), (16, 32), (128, 32)):
            yield Case(f"sdar{size}_bf16_{sequences}x{block}", f"SDAR-{size} bf16, {sequences} x blocks of {block}, 1k context",
                       f"sdar-{size}", sequences, block)


class Model:
    """Weights of one shape, and keys and values of the longest case of it."""

    def __init__(self, torch, shape, device):
        self.torch, self.shape, self.device = torch, shape, device
        torch.manual_seed(1)
        q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.table = self.random(shape.vocabulary, shape.hidden)
        self.head = self.random(shape.vocabulary, shape.hidden)
        self.ones = torch.ones(shape.hidden, device=device, dtype=torch.bfloat16)
        self.head_ones = torch.ones(shape.head_size, device=device, dtype=torch.bfloat16)
        self.layers = [(self.random(q + 2 * kv, shape.hidden), self.random(shape.hidden, q),
                        self.random(2 * shape.mlp, shape.hidden), self.random(shape.hidden, shape.mlp))
                       for _ in range(shape.layers)]

    def random(self, rows, cols):
        weight = self.torch.empty(rows, cols, device=self.device, dtype=self.torch.bfloat16)
        return weight.normal_(0, self.shape.hidden ** -0.5)

    def norm(self, x):
        return self.torch.nn.functional.rms_norm(x, (x.shape[-1],), self.ones, self.shape.epsilon)

    def head_norm(self, x):
        if not self.shape.head_norms:
            return x
        return self.torch.nn.functional.rms_norm(x, (x.shape[-1],), self.head_ones, self.shape.epsilon)

    def angles(self, positions):
        """cos, sin: [rows, hd], as bf16."""
        half = self.torch.arange(0, self.shape.head_size, 2, device=self.device, dtype=self.torch.float32)
        angle = positions.float()[:, None] * self.shape.theta ** (-half / self.shape.head_size)
        angle = self.torch.cat([angle, angle], dim=-1)
        return angle.cos().bfloat16(), angle.sin().bfloat16()

    def rotate(self, x, cos, sin):
        low, high = x.chunk(2, dim=-1)
        return x * cos + self.torch.cat([-high, low], dim=-1) * sin

    def forward(self, ids, first_position, cache, cos, sin):
        """ids: [sequences, rows]. cache: (keys, values) a layer, [sequences, nkv, positions, hd]; all are visible."""
        shape, functional = self.shape, self.torch.nn.functional
        sequences, rows = ids.shape
        sizes = [shape.heads * shape.head_size, shape.kv_heads * shape.head_size, shape.kv_heads * shape.head_size]
        hidden = functional.embedding(ids, self.table)
        for (qkv, out, gate_up, down), (keys, values) in zip(self.layers, cache):
            q, k, v = (part.view(sequences, rows, -1, shape.head_size).transpose(1, 2)
                       for part in functional.linear(self.norm(hidden), qkv).split(sizes, dim=-1))
            q, k = self.rotate(self.head_norm(q), cos, sin), self.rotate(self.head_norm(k), cos, sin)
            keys[:, :, first_position:first_position + rows] = k
            values[:, :, first_position:first_position + rows] = v
            mixed = functional.scaled_dot_product_attention(q, keys, values, enable_gqa=shape.heads != shape.kv_heads)
            hidden = hidden + functional.linear(mixed.transpose(1, 2).reshape(sequences, rows, -1), out)
            gate, up = functional.linear(self.norm(hidden), gate_up).chunk(2, dim=-1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, down)
        return self.norm(hidden)


class Step:
    """One step of a case on buffers of its own, to be captured."""

    def __init__(self, model, case):
        torch, shape, device = model.torch, model.shape, model.device
        self.model, self.case = model, case
        positions = case.context + case.block
        self.first = 0 if case.whole_canvas else case.context
        self.mask_id = shape.vocabulary - 1
        self.ids = torch.randint(0, self.mask_id, (case.sequences, positions - self.first), device=device)
        self.ids[:, -case.block:] = self.mask_id
        self.cos, self.sin = model.angles(torch.arange(self.first, positions, device=device))
        size = (case.sequences, shape.kv_heads, positions, shape.head_size)
        self.cache = [tuple(torch.randn(size, device=device, dtype=torch.bfloat16) for _ in range(2))
                      for _ in range(shape.layers)]

    def run(self):
        torch, block = self.model.torch, self.case.block
        hidden = self.model.forward(self.ids, self.first, self.cache, self.cos, self.sin)[:, -block:]
        logits = torch.nn.functional.linear(hidden, self.model.head).float()
        logits[..., self.mask_id] = float("-inf")
        best, token = logits.max(dim=-1)
        confidence = best - logits.logsumexp(dim=-1)
        masked = self.ids[:, -block:] == self.mask_id
        where = confidence.masked_fill(~masked, float("-inf")).argmax(dim=-1, keepdim=True)
        self.ids[:, -block:].scatter_(1, where, token.gather(1, where))


def seconds_of_steps(torch, step, seconds):
    """Device times of replays of the captured step."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    times, ends = [], time.monotonic() + seconds
    for i in range(100000):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end) * 1e-3)
        if len(times) >= 10 and time.monotonic() > ends:
            return times


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="cases whose names begin so, separated by commas")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    parser.add_argument("--toy", action="store_true", help="tiny sizes on any device, without a graph: figures mean nothing")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("no PyTorch in this Python")
        return SKIPPED
    if not options.toy and not torch.cuda.is_available():
        print("PyTorch finds no GPU")
        return SKIPPED
    prefixes = tuple(prefix for prefix in options.only.split(",") if prefix)
    device, model, loaded = "cuda" if torch.cuda.is_available() else "cpu", None, None
    with torch.inference_mode():
        for case in cases():
            if prefixes and not case.name.startswith(prefixes):
                continue
            print(case.name, file=sys.stderr, flush=True)
            if options.toy:
                case = dataclasses.replace(case, model="toy", sequences=min(case.sequences, 2), context=case.context // 32)
            if loaded != case.model:
                model = None  # Frees its memory before the next one takes its own.
                model, loaded = Model(torch, SHAPES[case.model], device), case.model
            step = Step(model, case)
            if options.toy:
                began = time.monotonic()
                step.run()
                times = [time.monotonic() - began]
            else:
                times = seconds_of_steps(torch, step, options.seconds)
            row = {"kind": "torch", "case": case.name, "what": case.what, "measured_us": statistics.median(times) * 1e6,
                   "steps": len(times), "version": torch.__version__}
            print(json.dumps(row), flush=True)
            del step
            if device == "cuda":
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
