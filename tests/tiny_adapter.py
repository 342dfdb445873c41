"""Tiny LoRA adapters, written on the spot as `save_pretrained` of peft writes them: a configuration and a safetensors file."""

from __future__ import annotations

import json
import random
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HIDDEN", "LAYERS", "write_adapter", "write_model_config"]

HIDDEN, LAYERS, RANK = 64, 2, 8
"""Of the model that `scripts/make_tiny_model.py` makes; its query and value projections are square."""


def write_adapter(
    folder: Path,
    seed: int = 0,
    *,
    size: float = 0.5,
    **config: object,
) -> Path:
    """Write an adapter with random weights.

    Args:
        folder: gets the files.
        seed: other weights for another one.
        size: of the weights; 0 changes nothing.
        config: further fields of `adapter_config.json`, or other values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "base_model_name_or_path": "tiny-qwen3",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    draw = random.Random(seed)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for layer in range(LAYERS):
        for module in ("q_proj", "v_proj"):
            for matrix, shape in (("lora_A", (RANK, HIDDEN)), ("lora_B", (HIDDEN, RANK))):
                begins = len(body)
                for _ in range(shape[0] * shape[1]):
                    body += struct.pack("<f", draw.uniform(-size, size))
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}.{matrix}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (begins, len(body))}
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return folder


def write_model_config(folder: Path, *, hidden: int = HIDDEN, layers: int = LAYERS) -> Path:
    """Write a model's `config.json`, as far as adapters are compared with it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": hidden, "num_hidden_layers": layers}))
    return folder
