"""Make a folder that loads as Qwen3-8B-FP8 or Qwen3-32B-FP8: the real architecture, a toy tokenizer, weights only when asked for.

    python3 -m benchmarks.gpu.make_model DIR [--shape 8b|32b] [--weights]

Without weights it is for `--load-format dummy`. With them, random FP8 values of the real shapes are written as
safetensors (9.4 GB for 8b), so that loading is part of a cold start. Run it with the engine's Python.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from scripts.make_tiny_model import rewrite, write_tokenizer

HEAD_DIM, KEY_VALUE_HEADS, VOCABULARY, BLOCK = 128, 8, 151936, 128
FILE_LAYERS = 9
"""Layers in one file of weights."""
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_key_value_heads": KEY_VALUE_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "initializer_range": 0.02,
    "use_cache": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "bos_token_id": 0,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    },
}
"""What all shapes have in common: the `config.json` of Qwen3-8B-FP8 and Qwen3-32B-FP8."""


class Shape(NamedTuple):
    """The sizes in which the models differ, as their `config.json` names them."""

    layers: int
    hidden: int
    intermediate: int
    heads: int

    def config(self) -> dict[str, int]:
        """Its part of `config.json`."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
        }


SHAPES = {"8b": Shape(36, 4096, 12288, 32), "32b": Shape(64, 5120, 25600, 64)}


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--weights", action="store_true")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    options.folder.mkdir(parents=True, exist_ok=True)
    tokens, end_of_turn, padding = write_tokenizer(options.folder)
    fill_vocabulary(options.folder / "tokenizer.json", tokens)
    rewrite(options.folder / "tokenizer_config.json", {"model_max_length": CONFIG["max_position_embeddings"]})
    ids = {"eos_token_id": end_of_turn, "pad_token_id": padding}
    (options.folder / "config.json").write_text(json.dumps({**CONFIG, **shape.config(), **ids}, indent=1))
    sampling = {**ids, "bos_token_id": 0, "do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    (options.folder / "generation_config.json").write_text(json.dumps(sampling, indent=1))
    if options.weights:
        write_weights(options.folder, shape)


def fill_vocabulary(file: Path, tokens: int) -> None:
    """Give every id of the model a text, so that an answer of random weights can be read and compared."""
    content = json.loads(file.read_text())
    content["model"]["vocab"] |= {f"<{number}>": number for number in range(tokens, VOCABULARY)}
    file.write_text(json.dumps(content))


def write_weights(folder: Path, shape: Shape) -> None:
    """Random weights, a file for every nine layers, drawn from a fixed seed on the GPU."""
    torch.manual_seed(0)
    index: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {
        "model.embed_tokens.weight": small(VOCABULARY, shape.hidden),
        "model.norm.weight": ones(shape.hidden),
        "lm_head.weight": small(VOCABULARY, shape.hidden),
    }
    files = -(-shape.layers // FILE_LAYERS)
    for layer in range(shape.layers):
        tensors |= layer_weights(f"model.layers.{layer}", shape)
        if (layer + 1) % FILE_LAYERS == 0 or layer + 1 == shape.layers:
            name = f"model-{layer // FILE_LAYERS + 1:05d}-of-{files:05d}.safetensors"
            save_file({key: tensor.cpu() for key, tensor in tensors.items()}, folder / name)
            index |= dict.fromkeys(tensors, name)
            tensors = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def layer_weights(layer: str, shape: Shape) -> dict[str, torch.Tensor]:
    """The tensors of one layer: FP8 matrices with a scale for each block of 128 x 128, and norms."""
    query, key = shape.heads * HEAD_DIM, KEY_VALUE_HEADS * HEAD_DIM
    shapes = {
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (key, shape.hidden),
        "self_attn.v_proj": (key, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }
    found: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in shapes.items():
        found[f"{layer}.{name}.weight"] = (small(rows, columns) * 50).to(torch.float8_e4m3fn)
        scale = torch.full((rows // BLOCK, columns // BLOCK), 0.02, device="cuda", dtype=torch.float32)
        found[f"{layer}.{name}.weight_scale_inv"] = scale
    for name, size in (
        ("input_layernorm", shape.hidden),
        ("post_attention_layernorm", shape.hidden),
        ("self_attn.q_norm", HEAD_DIM),
        ("self_attn.k_norm", HEAD_DIM),
    ):
        found[f"{layer}.{name}.weight"] = ones(size)
    return found


def small(rows: int, columns: int) -> torch.Tensor:
    """Random values of about the size that such a model is initialised with."""
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * 0.02


def ones(size: int) -> torch.Tensor:
    """A norm's weight."""
    return torch.ones(size, device="cuda", dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
