"""Rules about an engine's flag table and reserved flags, checked with the real parsers of all supported versions."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, ClassVar

import pytest

from torpor import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.plugins.local_engines import Questions
    from torpor.engine_plugins.chat_server import ChatServer
    from torpor.engine_plugins.flags import OptionValue

__all__ = ["FlagRules", "RealFlagRules", "ReservedRules"]

SUSPICIOUS_OPTION = re.compile(
    "port|grpc|ssl|tls|key|http|endpoint|bootstrap|sidecar|url|server|addr|host|listen|bind|socket|ray|worker|remote|zmq|ipc|"
    "custom|hook|node|external|file|pickle|trust|allow|embed|template|request|media|local|unsafe|insecure|plugin|middleware|publish|"
    "transfer|dump|credential|origin|decompress"
)

NEW_NAMES = (
    "--allowed-local-video-path",
    "--allow-anything",
    "--enable-audio-embeds",
    "--accept-chat-template",
    "--trust-request-tools",
    "--open-media",
    "--unsafe-mode",
    "--request-plugins",
)


class RealFlagRules:
    """The real parser and the flag table agree.

    Attributes:
        engine: the plugin.
        values: a value for every option of the table.
        before: arguments that the parser needs before the flags.
        excluded: options that exclude another option of `values`.
        judged: options whose names suggest a server, a port or an outgoing connection, but which open none; each with the reason.
    """

    engine: ClassVar[type[ChatServer]]
    values: ClassVar[Mapping[str, OptionValue]]
    before: ClassVar[tuple[str, ...]] = ()
    excluded: ClassVar[tuple[str, ...]] = ("load_format",)
    judged: ClassVar[Mapping[str, str]]

    def test_the_real_parser_reads_every_flag_as_the_option(self, questions: Questions) -> None:
        """The version's parser accepts each flag with the model and gives the option's value."""
        table = self.engine.reserved.table
        for flag in table:
            written = table.argv(questions.version, {flag.option: self.values[flag.option]})
            if questions.version in flag.needless:
                assert written == ()
                continue
            answer = questions.parse((*self.before, *written))
            assert "error" not in answer, (flag.option, answer)
            values = answer["values"]
            assert isinstance(values, dict)
            attributes = [name[2:].replace("-", "_") for name in (flag.name(questions.version), *flag.aliases)]
            meant = self._as_read(self.values[flag.option])
            assert [values[name] for name in attributes if name in values] == [flag.fixed or meant], flag.option

    def test_the_real_parser_reads_all_flags_together(self, questions: Questions) -> None:
        """All flags of the plugin form one valid command line."""
        together = {option: value for option, value in self.values.items() if option not in self.excluded}
        argv = (*self.before, *self.engine.reserved.table.argv(questions.version, together))
        assert "error" not in questions.parse(argv)

    def test_flags_are_written_in_full(self, questions: Questions) -> None:
        """No flag is an argparse abbreviation: the version lists its exact spelling."""
        spellings = {name for names in questions.ask("options") for name in names}
        for flag in self.engine.reserved.table:
            if questions.version in flag.needless:
                assert flag.flag not in spellings
            else:
                assert flag.name(questions.version) in spellings

    def test_the_real_parser_refuses_an_unknown_flag(self, questions: Questions) -> None:
        """This shows that the parsers are real and the rules above can fail."""
        said = questions.parse((*self.before, "--no-such-flag")).get("error", "")
        assert "unrecognized arguments: --no-such-flag" in said

    def test_every_other_flag_of_the_engine_is_allowed(self, questions: Questions) -> None:
        """A flag that is not reserved is allowed, even if it begins like a reserved one."""
        reserved = set(self.engine.reserved.flags())
        for name in itertools.chain.from_iterable(questions.ask("options")):
            if name.startswith("--") and name not in reserved:
                self.engine.reserved.check_extra_args(questions.version, (name,))

    def test_every_spelling_of_a_reserved_flag_is_reserved(self, questions: Questions) -> None:
        """The parser's aliases of a flag are reserved, too."""
        reserved = set(self.engine.reserved.flags())
        for names in questions.ask("options"):
            long = {name for name in names if name.startswith("--")}
            assert not long & reserved or long <= reserved, long

    def test_every_reserved_flag_exists(self, asked: Callable[[str], Questions]) -> None:
        """Some supported version has it, so it is not misspelt."""
        versions = self.engine.supported_versions
        real = {name for version in versions for names in asked(version).ask("options") for name in names}
        assert sorted(set(self.engine.reserved.flags()) - real) == []

    def test_every_option_with_a_suspicious_name_is_reserved_or_reviewed(self, questions: Questions) -> None:
        """New options for ports, servers and keys fail this test until they are reserved or reviewed as harmless."""
        known = {*self.engine.reserved.flags(), *self.judged}
        names = {name for names in questions.ask("options") for name in names if name.startswith("--")}
        assert sorted(name for name in names - known if SUSPICIOUS_OPTION.search(name)) == []

    @pytest.mark.parametrize("name", NEW_NAMES)
    def test_the_suspicious_words_match_flags_like_the_reserved_ones(self, name: str) -> None:
        """The list has the words of flags that give requests access to something, so it finds a new flag, too."""
        assert SUSPICIOUS_OPTION.search(name)

    def test_every_harmless_attribute_exists_in_some_version(self, asked: Callable[[str], Questions]) -> None:
        """A misspelt attribute would look like one that the version lacks."""
        real: set[str] = set()
        for version in self.engine.supported_versions:
            real |= set(asked(version).parse(self.before)["values"])
        assert sorted({name for entry in self.engine.reserved.reserved for name, _ in entry.harmless} - real) == []

    def test_the_defaults_of_every_version_leave_the_guard_in_place(self, questions: Questions) -> None:
        """The parser's defaults of reserved flags are harmless, so the launcher refuses no normal start."""
        values = questions.parse(self.before)["values"]
        assert isinstance(values, dict)
        for entry in self.engine.reserved.reserved:
            for attribute, harmless in entry.harmless:
                assert values.get(attribute, str(harmless[0])) in {str(value) for value in harmless}, attribute

    def _as_read(self, value: OptionValue) -> str:
        return str(value)


class FlagRules:
    """Rules about the table itself."""

    engine: ClassVar[type[ChatServer]]
    values: ClassVar[Mapping[str, OptionValue]]

    def test_every_flag_has_a_reason_and_a_source(self) -> None:
        """The reason says why the plugin sets the flag; the source says where each version defines it."""
        for flag in self.engine.reserved.table:
            assert len(flag.reason) > 20, flag.option
            assert all(version in flag.source for version in self.engine.supported_versions), flag.option
            assert flag.instead.endswith("."), flag.option

    def test_the_order_of_the_flags_does_not_depend_on_the_order_of_the_options(self) -> None:
        """The same options give the same command line, so a cache key of it stays the same."""
        table, version = self.engine.reserved.table, self.engine.supported_versions[0]
        one = table.argv(version, {"port": 1, "host": "h"})
        other = table.argv(version, {"host": "h", "port": 1})
        assert one == other == ("--host", "h", "--port", "1")

    def test_an_unknown_option_is_an_error_that_lists_the_known_ones(self) -> None:
        """A misspelt option is not ignored."""
        table, version = self.engine.reserved.table, self.engine.supported_versions[0]
        with pytest.raises(ConfigurationError, match=r"'prot' is unknown; known: .*port"):
            table.argv(version, {"prot": 8})

    def test_an_unsupported_version_has_no_flags(self) -> None:
        """An unsupported version is refused."""
        supported = re.escape(", ".join(self.engine.supported_versions))
        with pytest.raises(ConfigurationError, match=rf"0\.0\.1 is not supported; supported are {supported}"):
            self.engine.reserved.table.argv("0.0.1", {"port": 1})

    def test_two_options_cannot_set_one_flag(self) -> None:
        """Dummy weights and a load format set the same flag, so they exclude each other."""
        table, version = self.engine.reserved.table, self.engine.supported_versions[0]
        with pytest.raises(ConfigurationError, match="load_format wants --load-format, which another option has set"):
            table.argv(version, {"dummy_weights": True, "load_format": "pt"})


class ReservedRules:
    """Reserved extra arguments are refused in every spelling, before and after the engine parsed them.

    Attributes:
        passing: arguments that are allowed.
    """

    engine: ClassVar[type[ChatServer]]
    passing: ClassVar[tuple[tuple[str, ...], ...]]

    @property
    def version(self) -> str:
        """Return a supported version."""
        return self.engine.supported_versions[0]

    def test_a_reserved_flag_is_refused_with_a_reason(self) -> None:
        """The message names the argument, gives the reason, and ends with what to do instead."""
        for flag in self.engine.reserved.flags():
            for argument in (flag, f"{flag}=1"):
                if not flag.startswith("--"):
                    continue
                with pytest.raises(
                    ConfigurationError, match=f"^Engine argument '{argument}' is refused: .+[a-z0-9)`]\\."
                ):
                    self.engine.reserved.check_extra_args(self.version, ("--page-size", "16", argument))

    def test_abbreviations_of_a_reserved_flag_are_refused(self) -> None:
        """Argparse expands unambiguous abbreviations, so all are refused, also with a value attached."""
        for flag in self.engine.reserved.flags():
            for length in range(3, len(flag)):
                for argument in (flag[:length], f"{flag[:length]}=1", f"{flag[:length].replace('-', '_')}"):
                    if not argument.startswith("--"):
                        continue
                    with pytest.raises(ConfigurationError, match="is refused"):
                        self.engine.reserved.check_extra_args(self.version, (argument,))

    @pytest.mark.parametrize("argument", ["--", "-h", "-tp"])
    def test_short_flags_and_a_lone_double_dash_are_refused(self, argument: str) -> None:
        """A lone `--` would turn later flags into positional arguments, and short flags are abbreviations."""
        with pytest.raises(ConfigurationError, match="write flags as --name"):
            self.engine.reserved.check_extra_args(self.version, (argument, "x"))

    def test_other_flags_and_values_pass(self) -> None:
        """Values, negative numbers and longer flags that begin like a reserved one are allowed."""
        for argv in self.passing:
            self.engine.reserved.check_extra_args(self.version, argv)

    def test_a_parsed_argument_that_bypasses_the_guard_stops_the_launcher(self) -> None:
        """The launcher checks the values again after the engine parsed them, because a file can set them, too."""

        class Parsed:
            """Parsed arguments; one that the version lacks is harmless."""

        self.engine.reserved.check_parsed_args(self.version, Parsed())
        for entry in self.engine.reserved.reserved:
            for attribute, values in entry.harmless:
                parsed = Parsed()
                for value in values:
                    setattr(parsed, attribute, value)
                    self.engine.reserved.check_parsed_args(self.version, parsed)
                setattr(parsed, attribute, "other")
                with pytest.raises(ConfigurationError, match=f"would start with {attribute}='other': "):
                    self.engine.reserved.check_parsed_args(self.version, parsed)

    def test_a_variable_that_bypasses_the_guard_is_refused(self) -> None:
        """The message names it. Unset or off, it is harmless."""
        check = self.engine.reserved.check_environment
        check({})
        assert self.engine.reserved.environment
        for name, _ in self.engine.reserved.environment:
            check({name: ""})
            check({name: "0"})
            with pytest.raises(ConfigurationError, match=f"{name}=30001 is refused"):
                check({name: "30001"})
