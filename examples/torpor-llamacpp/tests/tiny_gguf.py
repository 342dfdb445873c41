"""Writes a model of half a megabyte: llama's real architecture, random weights, a byte tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter, TokenType

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, FEED_FORWARD, LAYERS, HEADS, CONTEXT = 64, 128, 2, 4, 512
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [chr(code) for code in range(32, 127)]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def write_tiny_gguf(path: Path) -> None:
    """Write the model. The bytes are the same every time."""
    writer = GGUFWriter(str(path), "llama")
    _write_shape(writer)
    _write_tokenizer(writer)
    _write_weights(writer, np.random.default_rng(7))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: GGUFWriter) -> None:
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)


def _write_tokenizer(writer: GGUFWriter) -> None:
    tokens = SPECIAL + BYTES + LETTERS
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * len(BYTES) + [TokenType.NORMAL] * len(LETTERS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * (len(tokens) - len(LETTERS)) + [-float(rank) for rank in range(len(LETTERS))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)


def _write_weights(writer: GGUFWriter, generator: np.random.Generator) -> None:
    vocabulary = len(SPECIAL + BYTES + LETTERS)

    def random(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", generator.normal(0, 0.2, shape).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    random("token_embd", vocabulary, WIDTH)
    random("output", vocabulary, WIDTH)
    ones("output_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            random(f"{block}.{part}", WIDTH, WIDTH)
        random(f"{block}.ffn_gate", FEED_FORWARD, WIDTH)
        random(f"{block}.ffn_up", FEED_FORWARD, WIDTH)
        random(f"{block}.ffn_down", WIDTH, FEED_FORWARD)
        ones(f"{block}.attn_norm")
        ones(f"{block}.ffn_norm")
