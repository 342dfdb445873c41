"""Engine arguments that are refused, in every spelling, before and after SGLang has parsed them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError
from torpor_sglang.reserved import RESERVED, check_environment, check_extra_args, check_parsed_args, reserved_flags
from torpor_sglang.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.local_engines import Questions

HARMLESS = [(attribute, values) for entry in RESERVED for attribute, values in entry.harmless]


@pytest.mark.parametrize("flag", reserved_flags())
def test_a_reserved_flag_is_refused_with_a_reason(flag: str) -> None:
    """The message names the argument, says why, and ends with what to do in its place."""
    for argument in (flag, f"{flag}=1"):
        with pytest.raises(
            ConfigurationError, match=f"^Engine argument '{argument}' is refused: .+[a-z0-9)]\\."
        ) as caught:
            check_extra_args("0.5.23", ("--page-size", "16", argument))
        assert str(caught.value).endswith(".")


@pytest.mark.parametrize("flag", reserved_flags())
def test_no_beginning_of_a_reserved_flag_slips_through(flag: str) -> None:
    """Argparse completes an unambiguous beginning, so every beginning is refused, with a value attached too."""
    for length in range(3, len(flag)):
        for argument in (flag[:length], f"{flag[:length]}=1"):
            with pytest.raises(ConfigurationError, match="is refused"):
                check_extra_args("0.5.16", (argument,))


@pytest.mark.parametrize("argument", ["--", "-h", "-tp"])
def test_what_is_no_long_flag_is_refused(argument: str) -> None:
    """A lone `--` would turn later flags into positions, and SGLang has no short flags but its help."""
    with pytest.raises(ConfigurationError, match="write flags as --name"):
        check_extra_args("0.5.23", (argument, "x"))


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--page-size", "16"),
        ("--chunked-prefill-size", "-1"),
        ("--schedule-policy=fcfs",),
        ("--json-model-override-args", '{"rope_theta": 1}'),
        ("--enable-metrics-for-all-schedulers",),
    ],
)
def test_other_flags_and_values_pass(argv: tuple[str, ...]) -> None:
    """Values, negative numbers and longer flags that begin like a reserved one are the user's business."""
    check_extra_args("0.5.6.post2", argv)


@pytest.mark.parametrize(("attribute", "values"), HARMLESS)
def test_a_parsed_argument_that_opens_a_way_round_the_guard_stops_the_launcher(
    attribute: str, values: tuple[object, ...]
) -> None:
    """Whatever an argument came from, its value is judged again once SGLang has parsed it."""
    for value in values:
        check_parsed_args("0.5.23", SimpleNamespace(**{attribute: value}))
    with pytest.raises(ConfigurationError, match=f"would start with {attribute}='other': "):
        check_parsed_args("0.5.23", SimpleNamespace(**{attribute: "other"}))


def test_arguments_that_a_version_lacks_are_harmless() -> None:
    """An old version has none of the newer doors."""
    check_parsed_args("0.5.6.post2", SimpleNamespace(model_path="m"))


@pytest.mark.sglang
def test_every_attribute_that_is_judged_exists_in_some_version(
    request: pytest.FixtureRequest,
) -> None:
    """No judged attribute is a misspelling, which would pass as one that the version lacks."""
    asked = request.getfixturevalue("asked")
    real: set[str] = set()
    for version in SUPPORTED_VERSIONS:
        real |= set(asked(version).parse(("--model-path", "m"))["values"])
    assert {attribute for attribute, _ in HARMLESS} <= real


@pytest.mark.sglang
def test_the_defaults_of_every_version_leave_the_guard_in_place(questions: Questions) -> None:
    """What the parser gives without a reserved flag is harmless, so the launcher refuses no ordinary start."""
    values = questions.parse(("--model-path", "m"))["values"]
    assert isinstance(values, dict)
    for attribute, harmless in HARMLESS:
        assert values.get(attribute, str(harmless[0])) in {str(value) for value in harmless}


@pytest.mark.sglang
@pytest.mark.slow
def test_a_config_file_cannot_bring_in_what_the_command_line_may_not_say(
    questions: Questions, tiny_model: Path, tmp_path: Path
) -> None:
    """The launcher judges SGLang's own arguments after SGLang has read its configuration file."""
    config = tmp_path / "engine.yaml"
    config.write_text("tokenizer-worker-num: 2\n")
    argv = ("--model-path", str(tiny_model), "--device", "cpu", "--attention-backend", "torch_native")
    harmless = questions.ask("checked", argv=argv)
    refused = questions.ask("checked", argv=(*argv, "--config", str(config)))
    assert harmless == {}
    assert "would start with tokenizer_worker_num=2" in refused["refused"]


@pytest.mark.parametrize("name", ["SGLANG_GRPC_PORT", "SGLANG_RUST_SERVER", "DUMPER_SERVER_PORT"])
def test_a_variable_that_opens_a_server_is_refused(name: str) -> None:
    """Variables that start a second server are refused by name; unset or off they are harmless."""
    check_environment({})
    check_environment({name: ""})
    check_environment({name: "0"})
    with pytest.raises(ConfigurationError, match=f"{name}=30001 is refused"):
        check_environment({name: "30001"})
