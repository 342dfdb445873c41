"""The last layer of a Qwen classifier, with the real classes of all supported versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plugins.local_engines import Questions

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


@pytest.mark.parametrize("module", ["qwen2_classification", "qwen3_classification"])
def test_a_classifier_whose_files_have_no_bias_adds_none(questions: Questions, module: str) -> None:
    """The layer begins with zeros, and the bias of files that have one is loaded over them."""
    assert questions.ask("biases", module=module) == [0.0, 0.0, 0.0]
    assert questions.ask("biases", module=module, bias=[1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
