"""What `check_adapter` refuses before a start, in one sentence that says what to change."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest

from tests.tiny_adapter import write_adapter, write_model_config
from torpor import Adapter, ConfigurationError
from torpor.values.adapter_files import check_adapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def check(folder: Path, *, model: str | None = None, rank: int | None = 16, base: str | None = None) -> None:
    """Check the adapter in a folder, against a model's folder beside it if there is one."""
    beside = folder.parent / "model"
    check_adapter(
        "sql",
        Adapter(path=str(folder), base=base),
        folder,
        model=model,
        model_folder=beside if beside.is_dir() else None,
        most_rank=rank,
    )


def test_an_adapter_of_the_model_passes(tmp_path: Path) -> None:
    """With safetensors, beside the model; with weights in another format, of which no shapes are known."""
    folder = write_adapter(tmp_path / "sql")
    check(folder)
    write_model_config(tmp_path / "model")
    check(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    check(folder)


def _no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def _list(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")


def _no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _no_header(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"<html>not found</html>")


def _empty(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"")


def _header(text: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)

    return damage


def _other_tensors(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes().replace(b".lora_", b".dora_"))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_no_config, r"sql is no adapter: it has no adapter_config\.json"),
        (_no_json, r"adapter_config\.json cannot be read as JSON"),
        (_list, r"holds no JSON object of settings"),
        (_no_weights, r"has no weights, adapter_model\.safetensors or adapter_model\.bin"),
        (_cut, r"adapter_model\.safetensors is damaged: it has \d+ bytes, and \d+ are wanted\. Copy it again"),
        (_no_header, r"adapter_model\.safetensors is damaged: its header has"),
        (_empty, r"adapter_model\.safetensors is damaged"),
        (_header(b'{"a": {"data_offsets": [0, 1e999], "shape": [1]}}'), r"adapter_model\.safetensors is damaged"),
        (_header(b'{"a": {"data_offsets": [0], "shape": [1]}}'), r"adapter_model\.safetensors is damaged"),
        (_header(b'{"a": {"data_offsets": [0, 0], "shape": [Infinity]}}'), r"adapter_model\.safetensors is damaged"),
        (_other_tensors, r"holds 8 tensors, and none of an adapter"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    """And what is no adapter at all."""
    folder = write_adapter(tmp_path / "sql")
    damage(folder)
    with pytest.raises(ConfigurationError, match=rf"^Model\.adapters\['sql'\]: .*{told}"):
        check(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """By its path."""
    with pytest.raises(ConfigurationError, match=r"there is no folder .*/none\. Name the folder"):
        check(tmp_path / "none")
    unreadable = tmp_path / ("a" * 300)  # Path.is_dir raises for it, as for a folder that may not be read
    with pytest.raises(ConfigurationError, match=r"there is no folder "):
        check_adapter("sql", Adapter(path="/sql"), unreadable, model=None, model_folder=None, most_rank=None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "IA3"}, r"has the peft_type 'IA3'; engines load LORA alone"),
        ({"r": 32}, r"has the rank 32, and the engine is configured for 16: raise max_adapter_rank .* to 32 or more"),
        ({"rank_pattern": {"q_proj": 64}}, r"has the rank 64"),
        ({"r": 0}, r"has the rank 0; a rank is a whole number from 1 on"),
        ({"r": "8"}, r"has the rank '8'"),
        ({"r": None}, r"has the rank None"),
    ],
)
def test_settings_that_the_engine_cannot_load_are_refused(tmp_path: Path, config: dict[str, object], told: str) -> None:
    """The kind of adapter, and its rank."""
    with pytest.raises(ConfigurationError, match=told):
        check(write_adapter(tmp_path / "sql", 0, size=0.5, **config))


def test_any_rank_passes_an_engine_without_a_limit(tmp_path: Path) -> None:
    """`most_adapter_rank` is None."""
    check(write_adapter(tmp_path / "sql", r=4096), rank=None)


@pytest.mark.parametrize(
    ("base", "model"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-FP8"),
        ("unsloth/qwen3-8b-unsloth-bnb-4bit", "Qwen/Qwen3-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "neuralmagic/Llama-3.1-8B-Instruct-quantized.w8a8"),
        ("/data/checkpoints/step-100", "Qwen/Qwen3-8B"),
        (None, "Qwen/Qwen3-8B"),
    ],
)
def test_the_same_model_in_another_form_passes(tmp_path: Path, base: str | None, model: str) -> None:
    """Another owner, another quantization, a folder's name, or none."""
    check(write_adapter(tmp_path / "sql", base_model_name_or_path=base), model=model)


@pytest.mark.parametrize(
    ("base", "model"),
    [
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-1B"),
    ],
)
def test_another_base_model_is_refused(tmp_path: Path, base: str, model: str) -> None:
    """Unless the deployment says that both are the same weights."""
    folder = write_adapter(tmp_path / "sql", base_model_name_or_path=base)
    with pytest.raises(ConfigurationError, match=rf"was made for {base} .*Model\.repo_id is '{model}'.*base='{base}'"):
        check(folder, model=model)
    check(folder, model=model, base=base)
    with pytest.raises(ConfigurationError, match=r"Adapter\.base is 'other/one'\. Write the name as it stands there"):
        check(folder, model=model, base="other/one")


@pytest.mark.parametrize(
    ("hidden", "layers", "told"),
    [
        (128, 2, r"is 64 wide, and the model in .* 128 \(hidden_size\)"),
        (64, 1, r"changes the layer 1, .* has 1 layers"),
    ],
)
def test_an_adapter_of_another_size_is_refused(tmp_path: Path, hidden: int, layers: int, told: str) -> None:
    """Whatever the names say: its matrices do not fit."""
    folder = write_adapter(tmp_path / "sql")
    write_model_config(tmp_path / "model", hidden=hidden, layers=layers)
    with pytest.raises(ConfigurationError, match=told):
        check(folder)
    inner = {"text_config": {"hidden_size": hidden, "num_hidden_layers": layers}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(inner))
    with pytest.raises(ConfigurationError, match=told):
        check(folder)
    (tmp_path / "model" / "config.json").write_text("no JSON: the engine tells that")
    check(folder)
