"""Reads an adapter's files before a start: is it an adapter, does its rank fit the engine, was it made for the model?

The format is PEFT's: `adapter_config.json` (peft 0.17, `LoraConfig`) beside `adapter_model.safetensors` or `adapter_model.bin`.
Of a safetensors file only the header is read: names, shapes and offsets of the tensors.
"""

from __future__ import annotations

import json
import os
import re
import struct
from typing import TYPE_CHECKING, cast

from torpor.errors import ConfigurationError
from torpor.values.field_types import shown
from torpor.values.given_files import is_shallow, read_given
from torpor.values.model_source import is_repository

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torpor.values.adapters import Adapter

__all__ = ["check_adapter"]

_CONFIG, _MODEL_CONFIG, _SAFETENSORS = "adapter_config.json", "config.json", "adapter_model.safetensors"
_WEIGHTS = (_SAFETENSORS, "adapter_model.bin")
_CONFIG_BYTES, _HEADER_BYTES, _LENGTH_BYTES = 4 << 20, 64 << 20, 8
_QUANTIZED = re.compile(
    r"\d+bit|([wa]\d+)+|(nv|mx)?fp\d+|bf16|int\d+|nf4|awq|gptq|bnb|gguf|unsloth|dynamic|block|quantized|autoround|hf"
)
"""A part of a repository's name that tells how its weights are stored, not which they are: `-FP8`, `-AWQ`, `-bnb-4bit`, `.w8a8`."""
_LAYER = re.compile(
    r"base_model\.model\.(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)\."
    r"(?:self_attn\.[qkv]_proj|mlp\.(?:gate|up)_proj)\.lora_A\.weight"
)
"""A matrix that is as wide as the model: [rank, hidden size]."""


def check_adapter(
    name: str, adapter: Adapter, folder: Path, *, model: str | None, model_folder: Path | None, most_rank: int | None
) -> None:
    """Refuse an adapter that the engine could not load, or that was made for another model.

    Args:
        name: the adapter's, for messages.
        adapter: what was given.
        folder: where its files are.
        model: the model's repository on the hub; None for a folder, whose name says nothing.
        model_folder: where the model's files are; None if they are not on this machine.
        most_rank: the highest rank that the engine is configured for; None for any.

    Raises:
        ConfigurationError: says what the file holds and what to change.
    """
    where = f"Model.adapters[{name!r}]"
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for one that may not be read
        raise ConfigurationError(f"{where}: there is no folder {folder}. Name the folder that has its {_CONFIG}.")
    config = _config(where, folder)
    _check_rank(where, config, most_rank)
    _check_base(where, config, adapter, model)
    shapes = _shapes(where, folder)
    if shapes and model_folder is not None:
        _check_shapes(where, shapes, model_folder)


def _config(where: str, folder: Path) -> Mapping[str, object]:
    file = folder / _CONFIG
    if not os.path.isfile(file):  # noqa: PTH113 - as above
        raise ConfigurationError(
            f"{where}: {folder} is no adapter: it has no {_CONFIG}. Name the folder that `save_pretrained` of peft wrote."
        )
    config = _json(where, file)
    if config.get("peft_type") != "LORA":
        raise ConfigurationError(
            f"{where}: {file} has the peft_type {shown(config.get('peft_type'))}; engines load LORA alone. Name a LoRA adapter."
        )
    if not any((folder / one).is_file() for one in _WEIGHTS):
        raise ConfigurationError(
            f"{where}: {folder} has no weights, {' or '.join(_WEIGHTS)}. Copy the whole folder of the adapter."
        )
    return config


def _json(where: str, file: Path) -> Mapping[str, object]:
    try:
        content = json.loads(read_given(file, "", most=_CONFIG_BYTES))
    except (ConfigurationError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{where}: {file} cannot be read as JSON: {str(error).rstrip('. ')}. Copy it again."
        ) from error
    if not isinstance(content, dict) or not is_shallow(content):
        raise ConfigurationError(f"{where}: {file} holds no JSON object of settings. Copy it again.")
    return content


def _check_rank(where: str, config: Mapping[str, object], most_rank: int | None) -> None:
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    if wrong := [rank for rank in ranks if type(rank) is not int or rank < 1]:
        raise ConfigurationError(
            f"{where}: its {_CONFIG} has the rank {shown(wrong[0])}; a rank is a whole number from 1 on. Name a LoRA adapter."
        )
    rank = max(cast("list[int]", ranks))
    if most_rank is not None and rank > most_rank:
        raise ConfigurationError(
            f"{where} has the rank {rank}, and the engine is configured for {most_rank}: raise max_adapter_rank of the engine's "
            f"plugin to {rank} or more."
        )


def _check_base(where: str, config: Mapping[str, object], adapter: Adapter, model: str | None) -> None:
    """Compare names of repositories; folders may have any name."""
    base = config.get("base_model_name_or_path")
    if adapter.base is not None:
        if base != adapter.base:
            raise ConfigurationError(
                f"{where}: its {_CONFIG} names the base model {shown(base)}, and Adapter.base is {shown(adapter.base)}. Write the "
                "name as it stands there, or name another adapter."
            )
        return
    if model is None or not isinstance(base, str) or not is_repository(base):
        return
    if _plain_name(base) != _plain_name(model):
        raise ConfigurationError(
            f"{where} was made for {base} (base_model_name_or_path in its {_CONFIG}), and Model.repo_id is {model!r}. Name an "
            f"adapter of that model; if both are the same weights, write Adapter(..., base={base!r})."
        )


def _plain_name(repository: str) -> tuple[str, ...]:
    """The parts of a repository's name, without its owner and without how the weights are stored."""
    parts = re.split(r"[-_.]", repository.rpartition("/")[2].lower())
    kept = [part for place, part in enumerate(parts) if place == 0 or not _QUANTIZED.fullmatch(part)]
    return tuple(kept)


def _shapes(where: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors by name; empty for weights in another format.

    Raises:
        ConfigurationError: the file is damaged, or holds no adapter.
    """
    file = folder / _SAFETENSORS
    if not file.is_file():
        return {}
    try:
        shapes = dict(_header(file))
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        raise ConfigurationError(f"{where}: {file} is damaged: {error}. Copy it again.") from error
    if not any(".lora_" in tensor for tensor in shapes):
        raise ConfigurationError(
            f"{where}: {file} holds {len(shapes)} tensors, and none of an adapter (lora_A, lora_B). Name a LoRA adapter."
        )
    return shapes


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor. The format: 8 bytes with the header's length, the header as JSON, the tensors' bytes."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(_LENGTH_BYTES))
        if length > min(_HEADER_BYTES, size):
            raise ValueError(f"its header has {length} bytes, the file {size}")
        header = json.loads(stream.read(length))
    ends = 0
    for name, facts in header.items():
        if name != "__metadata__":
            ends = max(ends, int(facts["data_offsets"][1]))
            yield str(name), tuple(map(int, facts["shape"]))
    if _LENGTH_BYTES + length + ends != size:
        raise ValueError(f"it has {size} bytes, and {_LENGTH_BYTES + length + ends} are wanted")


def _check_shapes(where: str, shapes: Mapping[str, tuple[int, ...]], model_folder: Path) -> None:
    """Compare width and number of layers with the model's `config.json`, if it has one."""
    try:
        config = json.loads(read_given(model_folder / _MODEL_CONFIG, "", most=_CONFIG_BYTES))
    except (ConfigurationError, ValueError, RecursionError):
        return  # the engine says what is wrong with a model
    if not isinstance(config, dict):
        return
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, dict) else config
    width, layers = config.get("hidden_size"), config.get("num_hidden_layers")
    for tensor, shape in shapes.items():
        if not (found := _LAYER.fullmatch(tensor)):
            continue
        if isinstance(width, int) and shape[-1:] != (width,):
            raise ConfigurationError(
                f"{where} was made for another model: its {tensor} is {shape[-1] if shape else 0} wide, and the model in "
                f"{model_folder} {width} (hidden_size). Name an adapter of that model."
            )
        if isinstance(layers, int) and int(found[1]) >= layers:
            raise ConfigurationError(
                f"{where} was made for another model: it changes the layer {found[1]}, and the model in {model_folder} has "
                f"{layers} layers (0 is the first). Name an adapter of that model."
            )
