"""The reference made from code: public names, environment variables, records, stages."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING

import pytest
from scripts.site import api, environment, records

from tests import ROOT
from tests.docs.pages import DOCS
from torpor.telemetry.records import StageRecord
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from pathlib import Path

NOT_IN_CODE = re.compile(r"TORPOR_(?:TEST|REQUIRE|FAKE)_\w+|TORPOR_(?:RECORD|TORCH_INDEX|GPU_BENCH)")
"""Variables of tests, benchmarks and scripts."""

OF_ENGINES = re.compile(r"(?:NCCL|SGLANG|VLLM|PYTEST)_\w+")
"""Variables whose values Torpor compares, not its own settings: the pages of engines and GPUs have them."""


def test_every_public_name_is_described_on_one_page() -> None:
    """And the pages describe nothing else. A name of two packages is described once."""
    wanted = {api.directive(package, name) for package, names in api.public_names().items() for name in names}
    pages = api.described()
    assert set(pages) - wanted == set()
    alike = {"torpor.platforms.modal.ModalOptions": "torpor.ModalOptions"}
    assert {name for name in wanted - set(pages) if alike.get(name) not in pages} == set()


def test_a_name_on_two_pages_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names both."""
    for page in ("a.md", "b.md"):
        (tmp_path / page).write_text("# A\n\n::: torpor.Model\n", encoding="utf-8")
    monkeypatch.setattr(api, "DOCS", tmp_path)
    with pytest.raises(ValueError, match=r"a\.md and b\.md both describe torpor\.Model"):
        api.described()


def test_the_markdown_of_an_api_page_has_the_docstrings() -> None:
    """Signature, docstring and members in place of each directive; a name that does not exist is an error."""
    text = api.expanded({"a.md": "# A\n\n::: torpor.Scaling\n    options:\n      heading_level: 3\n\nend\n"})["a.md"]
    assert text.startswith("# A\n\n## torpor.Scaling\n\n```python\nScaling(*, target_concurrency: int = 10")
    assert "How many requests a replica takes and how many replicas there are." in text
    assert text.endswith("end\n")
    assert ":::" not in text
    assert (
        "### torpor.Lifecycle.recipe\n\n```python\nrecipe(" in api.expanded({"a.md": "::: torpor.Lifecycle\n"})["a.md"]
    )
    with pytest.raises(ValueError, match=r"torpor\.Nothing, which does not exist"):
        api.expanded({"a.md": "::: torpor.Nothing\n"})


def test_every_environment_variable_is_a_constant_with_a_docstring() -> None:
    """The table has every name that stands in a string of the code, and says what each does."""
    known = {one.name for one in environment.variables()}
    prefixes = tuple(name for name in known if name.endswith("_"))
    assert {name for name in environment.named_in_code() - known if not name.startswith(prefixes)} == set()
    assert [one.name for one in environment.variables() if not one.meaning.endswith(".")] == []


def test_a_variable_is_set_by_people_or_by_torpor() -> None:
    """Each is in one of the two tables."""
    by_hand, own = environment.variable_table(by_hand=True), environment.variable_table(by_hand=False)
    for one in environment.variables():
        assert (f"| `{one.name}" in by_hand) + (f"| `{one.name}" in own) == (not one.for_tests), one
    assert "| `TORPOR_CACHE` |" in by_hand
    assert "| `TORPOR_BOOT_FD` |" in own


def test_every_foreign_variable_that_the_code_reads_is_in_the_table() -> None:
    """And no other one."""
    read = {name for name in environment.read_in_code() if not OF_ENGINES.fullmatch(name)}
    assert read - set(environment.FOREIGN) == set()
    assert set(environment.FOREIGN) - read == set()


@pytest.mark.parametrize(
    "page", sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md"]), ids=lambda page: page.name
)
def test_a_page_names_only_variables_that_exist(page: Path) -> None:
    """A variable that was renamed is found."""
    text = page.read_text(encoding="utf-8")
    known = {one.name for one in environment.variables()}
    prefixes = tuple(name for name in known if name.endswith("_"))
    named = {name for name in re.findall(r"TORPOR_[A-Z_]*[A-Z]_?", text) if not name.startswith(prefixes)}
    assert {name for name in named - known if not NOT_IN_CODE.fullmatch(name)} == set()


def test_every_field_of_a_record_and_every_stage_is_told() -> None:
    """In order."""
    rows = re.findall(r"^\| `(\w+)` \| \S", records.record_table(), re.MULTILINE)
    assert rows == ["schema", *(field.name for field in fields(StageRecord))]
    assert list(records.STAGES) == list(Stage)
    assert re.findall(r"^\| `(\w+)` \| \S", records.stage_table(), re.MULTILINE) == [one.value for one in Stage]


def test_every_metric_of_the_text_file_is_told() -> None:
    """With its kind and its labels."""
    table = records.textfile_table()
    assert "| `torpor_stage_seconds` | gauge | `deployment`, `replica`, `stage`, `boot` | Wall time" in table
    for name in ("cold_starts", "restores", "wakes", "failures", "restarts"):
        assert f"| `torpor_{name}_total` | counter | `deployment`, `replica`" in table


def test_every_public_name_has_a_docstring_on_its_page() -> None:
    """A value has it below its line."""
    assert [name for name in api.described() if not api._summary(name)] == []
