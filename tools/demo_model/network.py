"""SDAR dense network (Qwen3-like decoder; block-causal, or causal: then it is Qwen3) in PyTorch, and its safetensors reader and writer."""
import json
import math
import struct
from pathlib import Path

import torch
import torch.nn.functional as F

from tokenizer import CONTEXT_TOKENS_MAX

NO_SIGHT = -1e9  # added to the scores of rows that must not see each other


def make_config(options, vocab_size, special):
    """config.json of the checkpoint; options has hidden, layers, heads, kv_heads, head_dim, intermediate, block and
    causal."""
    config = {"architectures": ["SDARForCausalLM"], "model_type": "sdar", "attention_bias": False,
            "attention_dropout": 0.0, "bos_token_id": special["<|endoftext|>"], "eos_token_id": special["<|im_end|>"],
            "pad_token_id": special["<|endoftext|>"], "mask_token_id": special["<|MASK|>"],
            "block_size": options.block, "head_dim": options.head_dim, "hidden_act": "silu",
            "hidden_size": options.hidden, "initializer_range": 0.02, "intermediate_size": options.intermediate,
            "max_position_embeddings": CONTEXT_TOKENS_MAX, "max_window_layers": options.layers,
            "num_attention_heads": options.heads, "num_hidden_layers": options.layers,
            "num_key_value_heads": options.kv_heads, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000,
            "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
            "use_sliding_window": False, "vocab_size": vocab_size}
    if options.causal:
        config.update(architectures=["Qwen3ForCausalLM"], model_type="qwen3")
        del config["mask_token_id"], config["block_size"]
    return config


def shapes(config):
    """Tensor shapes by their Hugging Face (Qwen3) names."""
    hidden, head, inter = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    out = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = {"input_layernorm": (hidden,), "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden),
                 "self_attn.v_proj": (kv, hidden), "self_attn.q_norm": (head,), "self_attn.k_norm": (head,),
                 "self_attn.o_proj": (hidden, q), "post_attention_layernorm": (hidden,),
                 "mlp.gate_proj": (inter, hidden), "mlp.up_proj": (inter, hidden), "mlp.down_proj": (hidden, inter)}
        out.update({f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()})
    out["model.norm.weight"] = (hidden,)
    return out


def init_weights(config, seed):
    """Normal weights with fan-in scaling; projections into the residual stream are damped by the depth."""
    generator = torch.Generator().manual_seed(seed)
    residual = 1 / math.sqrt(2 * config["num_hidden_layers"])
    weights = {}
    for name, shape in shapes(config).items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape)
            continue
        scale = 0.05 if "embed" in name else 1 / math.sqrt(shape[1])
        if "o_proj" in name or "down_proj" in name:
            scale *= residual
        weights[name] = torch.randn(shape, generator=generator) * scale
    return weights


class RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight in fp32, with a hand-written backward (fewer passes over memory than autograd's)."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        x = x.float()
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, weight, inverse)
        return normed * weight

    @staticmethod
    def backward(ctx, grad):
        normed, weight, inverse = ctx.saved_tensors
        product = grad * normed
        weight_grad = product.reshape(-1, normed.shape[-1]).sum(0)
        dot = (product @ weight).unsqueeze(-1).div_(normed.shape[-1])
        return (grad * weight).sub_(normed * dot).mul_(inverse), weight_grad, None


class SwiGlu(torch.autograd.Function):
    """silu(gate) * up, with a hand-written backward."""

    @staticmethod
    def forward(ctx, gate, up):
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        ctx.save_for_backward(up, sigmoid, silu)
        return silu * up

    @staticmethod
    def backward(ctx, grad):
        up, sigmoid, silu = ctx.saved_tensors
        slope = torch.addcmul(sigmoid + silu, silu, sigmoid, value=-1)
        return slope.mul_(up).mul_(grad), grad * silu


def rope_table(config, positions):
    """cos and sin [..., 1, head_dim / 2] for integer positions."""
    half = config["head_dim"] // 2
    inverse = config["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = positions.float().unsqueeze(-1) * inverse
    return angle.cos().unsqueeze(-2), angle.sin().unsqueeze(-2)


def rotate(x, cos, sin):
    """Half rotation of x [E, S, heads, head_dim]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attention(config, weights, prefix, x, table, mask, dtype):
    """Self-attention of one layer; x [E, S, H] is normed, mask [E, 1, S, S] is added to the scores."""
    E, S, _ = x.shape
    nh, nkv, hd = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    stacked = torch.cat([weights[prefix + f"self_attn.{t}_proj.weight"] for t in "qkv"])
    q, k, v = F.linear(x, stacked.to(dtype)).split([nh * hd, nkv * hd, nkv * hd], dim=-1)
    eps = config["rms_norm_eps"]
    q = RmsNorm.apply(q.reshape(E, S, nh, hd), weights[prefix + "self_attn.q_norm.weight"], eps)
    k = RmsNorm.apply(k.reshape(E, S, nkv, hd), weights[prefix + "self_attn.k_norm.weight"], eps)
    q, k = (rotate(q, *table) * hd ** -0.5).to(dtype), rotate(k, *table).to(dtype)
    # Query heads that share a key head are stacked along the row axis.
    q = q.view(E, S, nkv, nh // nkv, hd).permute(0, 2, 3, 1, 4).reshape(E, nkv, -1, hd)
    scores = torch.matmul(q, k.permute(0, 2, 3, 1)).view(E, nh, S, S) + mask
    probabilities = torch.softmax(scores, -1).to(dtype).view(E, nkv, -1, S)
    out = torch.matmul(probabilities, v.reshape(E, S, nkv, hd).transpose(1, 2))
    out = out.view(E, nkv, nh // nkv, S, hd).permute(0, 3, 1, 2, 4).reshape(E, S, nh * hd)
    return F.linear(out, weights[prefix + "self_attn.o_proj.weight"].to(dtype))


def forward(config, weights, ids, positions, mask, rows, dtype=torch.float32):
    """fp32 logits of the chosen rows.

    ids and positions are [E, S], mask [E, 1, S, S]; rows are flat indices into E * S.  Matrix products run in dtype,
    the residual stream and the norms in fp32.
    """
    eps = config["rms_norm_eps"]
    x = F.embedding(ids, weights["model.embed_tokens.weight"])
    table = rope_table(config, positions)
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        normed = RmsNorm.apply(x, weights[prefix + "input_layernorm.weight"], eps).to(dtype)
        x = x + attention(config, weights, prefix, normed, table, mask, dtype)
        normed = RmsNorm.apply(x, weights[prefix + "post_attention_layernorm.weight"], eps).to(dtype)
        gate = F.linear(normed, weights[prefix + "mlp.gate_proj.weight"].to(dtype))
        up = F.linear(normed, weights[prefix + "mlp.up_proj.weight"].to(dtype))
        x = x + F.linear(SwiGlu.apply(gate, up), weights[prefix + "mlp.down_proj.weight"].to(dtype))
    x = x.reshape(-1, x.shape[-1]).index_select(0, rows)
    x = RmsNorm.apply(x, weights["model.norm.weight"], eps).to(dtype)
    return F.linear(x, weights["model.embed_tokens.weight"].to(dtype)).float()


def save_safetensors(path, weights):
    """Writes the weights in bf16."""
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in weights.items():
        blob = tensor.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def load_safetensors(path):
    """The bf16 weights of a file, as fp32 tensors."""
    raw = Path(path).read_bytes()
    data = 8 + struct.unpack("<Q", raw[:8])[0]
    weights = {}
    for name, info in json.loads(raw[8:data]).items():
        if name != "__metadata__":
            low, high = (data + offset for offset in info["data_offsets"])
            bits = torch.frombuffer(bytearray(raw[low:high]), dtype=torch.int16)
            weights[name] = bits.view(torch.bfloat16).view(info["shape"]).float()
    return weights
