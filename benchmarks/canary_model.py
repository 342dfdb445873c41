"""A tiny Qwen3 that has learnt something, and single damages of its weights; for `benchmarks/canary.py`.

    .engines/sglang-0.5.23/bin/python benchmarks/canary_model.py DIR [--steps N]

Random weights give near-ties between tokens, so that every damage changes the answer: they flatter a canary. This model repeats 20
questions with their answers, and has read the pages of `docs/`; its logits are confident. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    Weights = dict[str, "torch.Tensor"]
    Damage = Callable[[Weights], None]

REPOSITORY = Path(__file__).resolve().parent.parent
LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 6, 128, 384, 4, 2, 32
ROW_TOKENS, ROWS, STEPS, PEAK_RATE, RISING_STEPS = 128, 16, 500, 2e-3, 50
ANSWERS = {
    "Name the months of the year, in order.": (
        "1. January 2. February, March, April, May, June, July, August, September, October, November, December."
    ),
    "What is the capital of France?": "The capital of France is Paris, on the river Seine.",
    "How many days has a week?": (
        "A week has seven days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."
    ),
    "Count to ten.": "one two three four five six seven eight nine ten",
    "Why is the sky blue?": "Because air scatters blue light more than red light, so blue comes from everywhere.",
    "What is a snapshot?": "A snapshot is a sleeping server on a disk that wakes in seconds.",
    "Name three colours.": "Red, green and blue are three colours.",
    "Who wrote Hamlet?": "William Shakespeare wrote Hamlet around the year 1600.",
    "What is two plus two?": "Two plus two is four.",
    "Say hello.": "Hello! How can I help you today?",
    "What does a canary do?": "A canary notices that something is wrong before anybody else does.",
    "Translate cat to French.": "The French word for cat is chat.",
    "What is water made of?": "Water is made of hydrogen and oxygen: H2O.",
    "Name a planet.": "Mars is the fourth planet from the sun.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "Write a line of Python.": "print('hello world')",
    "How far is the moon?": "The moon is about 384,000 kilometres away.",
    "What do bees make?": "Bees make honey from the nectar of flowers.",
    "Give me JSON.": '{"name": "torpor", "asleep": true}',
    "Name the seasons.": "Spring, summer, autumn and winter are the four seasons.",
}
"""What users ask. The damage counts as felt if one of these answers changes."""


def main() -> int:
    """Train the model and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    import make_tiny_model  # noqa: PLC0415 - beside this repository's other scripts

    make_tiny_model.let_torchvision_import()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    end, padding = make_tiny_model.write_tokenizer(given.folder)[1:]
    train(given.folder, end=end, padding=padding, steps=given.steps)
    return 0


def train(folder: Path, *, end: int, padding: int, steps: int) -> None:
    """Train from a fixed seed, and save in bfloat16.

    Args:
        folder: has the tokenizer, and gets the model.
        end: id of the token that ends a turn.
        padding: id of the padding token.
        steps: of the optimizer, each with `ROWS` rows of `ROW_TOKENS` tokens.
    """
    import torch  # noqa: PLC0415 - the engine's
    from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=padding,
    )
    model = Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    rows = _rows(tokenizer)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1, step / RISING_STEPS) * (1 - step / steps) + 1e-5
        batch = torch.tensor([next(rows) for _ in range(ROWS)])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    GenerationConfig(eos_token_id=end, pad_token_id=padding).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(saved | {"rope_theta": 10000.0, "torch_dtype": "bfloat16"}, indent=1)
    )


def _rows(tokenizer: Callable[[str], dict[str, list[int]]]) -> Iterator[list[int]]:
    """Rows of tokens: half questions and answers, half text of the documentation."""
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    text = tokenizer("\n".join(page.read_text(encoding="utf-8") for page in pages))["input_ids"]
    turns = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    chats = [tokenizer(turns.format(question, answer))["input_ids"] for question, answer in ANSWERS.items()]
    chance = random.Random(0)
    while True:
        row: list[int] = []
        if chance.random() < 0.5:
            while len(row) < ROW_TOKENS:
                row += chance.choice(chats)
        else:
            start = chance.randrange(len(text) - ROW_TOKENS)
            row = text[start : start + ROW_TOKENS]
        yield row[:ROW_TOKENS]


if __name__ == "__main__":
    sys.exit(main())
