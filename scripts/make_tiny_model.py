"""Make a tiny Qwen3 with random weights and a toy tokenizer: a real architecture that a CPU serves in milliseconds.

    .engines/sglang-0.5.23/bin/python scripts/make_tiny_model.py DIR [CLASSES]

With CLASSES it is a classifier of so many classes in place of a language model; a reranker is one of a single class.

Nothing is downloaded: the weights are drawn from a fixed seed and the byte-level BPE tokenizer is trained on the spot,
so every run of the same recipe writes the same model. DIR appears when it is whole, with a marker in it; a second call
finds the marker and ends.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPE = "tiny-qwen3-1"  # raise it when the same seed would give another model
MARKER = "torpor-tiny-model.json"
SEED = 0
LAYERS = 2
HIDDEN = 64
HEAD_DIM = 32
HEADS = 2
VOCABULARY = 512
CONTEXT = 2048
END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
CORPUS = (
    "the quick brown fox jumps over the lazy dog. hello world, what is the capital of France? user assistant system",
    "You are a helpful assistant. A server sleeps in a snapshot and wakes in seconds: how long does that take?",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def let_torchvision_import() -> None:
    """Apply the launcher's patches: transformers imports torchvision, a CUDA build beside a CPU build of torch."""
    from torpor_sglang.patches import apply_all  # noqa: PLC0415 - on the path of an engine's Python

    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"  # the patches that a CPU needs
    apply_all(os.environ)


def write_tokenizer(folder: Path) -> tuple[int, int, int]:
    """Train the tokenizer and write it.

    Returns:
        Its number of tokens, and the ids of end of turn and padding.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - the engine's
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PADDING, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TURN, pad_token=PADDING)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(folder)
    # transformers 4.57 and 5.x write different names here; these are the ones that both read.
    rewrite(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": [START_OF_TURN]},
        remove=("extra_special_tokens", "backend"),
    )
    return len(tokenizer), tokenizer.convert_tokens_to_ids(END_OF_TURN), tokenizer.convert_tokens_to_ids(PADDING)


def write_model(folder: Path, tokens: int, end_of_turn: int, padding: int, classes: int) -> None:
    """Draw the weights from the seed and write them with their configuration."""
    import torch  # noqa: PLC0415 - the engine's
    from transformers import (  # noqa: PLC0415
        GenerationConfig,
        Qwen3Config,
        Qwen3ForCausalLM,
        Qwen3ForSequenceClassification,
    )

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=-(-tokens // 64) * 64,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end_of_turn,
        pad_token_id=padding,
        **({"num_labels": classes} if classes else {}),
    )
    kind = Qwen3ForSequenceClassification if classes else Qwen3ForCausalLM
    kind(config).to(torch.bfloat16).save_pretrained(folder)
    sampling = {"do_sample": True, "temperature": 0.8}
    GenerationConfig(eos_token_id=end_of_turn, pad_token_id=padding, **sampling).save_pretrained(folder)
    # The names that transformers 4.57 reads, beside those that 5.x wrote.
    rewrite(folder / "config.json", {"rope_theta": 10000.0, "torch_dtype": "bfloat16"})


def rewrite(file: Path, values: dict[str, object], remove: Sequence[str] = ()) -> None:
    """Change fields of a JSON file."""
    content = {name: value for name, value in json.loads(file.read_text()).items() if name not in remove}
    file.write_text(json.dumps(content | values, indent=2, sort_keys=True) + "\n")


def recipe_of(classes: int) -> str:
    """The recipe's name in the marker."""
    return f"{RECIPE}-{classes}-classes" if classes else RECIPE


def is_whole(folder: Path, classes: int) -> bool:
    """Tell whether this recipe's complete model is in the folder."""
    try:
        return bool(json.loads((folder / MARKER).read_text())["recipe"] == recipe_of(classes))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make(folder: Path, classes: int) -> None:
    """Make the model in a folder next to the requested one, then rename it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_model(draft, *write_tokenizer(draft), classes)
        (draft / MARKER).write_text(json.dumps({"recipe": recipe_of(classes)}) + "\n")
        draft.chmod(0o755)
        if (folder / MARKER).exists():  # an older recipe's
            shutil.rmtree(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def main(argv: Sequence[str]) -> int:
    """Make the model in the folder named; return the exit code."""
    if len(argv) not in (1, 2) or argv[0].startswith("-") or not all(number.isdecimal() for number in argv[1:]):
        print("usage: make_tiny_model.py DIR [CLASSES]", file=sys.stderr)
        return 2
    folder, classes = Path(argv[0]).resolve(), int(argv[1]) if argv[1:] else 0
    if is_whole(folder, classes):
        print(f"{folder}: ready")
        return 0
    if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
        print(f"make_tiny_model: {folder} holds something else; name another folder", file=sys.stderr)
        return 2
    started = time.monotonic()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        let_torchvision_import()
        make(folder, classes)
    except ImportError as error:
        print(f"make_tiny_model: {error}; run it with an engine's Python, see scripts/setup-local", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"make_tiny_model: {error.strerror}: {error.filename}", file=sys.stderr)
        return 1
    print(f"{folder}: made in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
