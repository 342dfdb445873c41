"""Rules about an engine's request fields and variables, checked with the real engine in all supported versions."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from torpor.launcher.public_requests import PublicRequestRules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.plugins.local_engines import Questions
    from torpor.engine_plugins.chat_server import ChatServer

__all__ = ["FieldRules", "RealFieldRules"]

SUSPICIOUS_VARIABLE = re.compile(
    "ALLOW|TRUST|INSECURE|UNSAFE|PICKLE|REQUEST|MEDIA|UPLOAD|DECOMPRESS|GRPC|HTTP|PORT$|_PORT_|ENDPOINT|PEER|SERVER|API_KEY|PLUGIN|CUSTOM|TEMPLATE|EMBED|"
    "UNSAFE"
)


class RealFieldRules:
    """Every new field, header or variable of a version fails a test, which names it.

    Attributes:
        engine: the plugin.
        judged: variables whose names suggest access or a bypassed limit, and which were reviewed; each with the reason.
    """

    engine: ClassVar[type[ChatServer]]
    judged: ClassVar[Mapping[str, str]]

    def test_every_field_of_a_public_request_is_classified(self, questions: Questions) -> None:
        """A field in no list is new: classify it in the plugin's fields.py (plain, bounded or refused)."""
        new = sorted(set(questions.ask("fields")) - set(self.engine.request_fields.all()))
        assert new == [], f"new in {questions.version}: classify these in the fields.py of {self.engine.plugin_name}"

    def test_every_classified_field_exists(self, asked: Callable[[str], Questions]) -> None:
        """Some supported version has it, so it is not misspelt."""
        real = {name for version in self.engine.supported_versions for name in asked(version).ask("fields")}
        assert sorted(set(self.engine.request_fields.all()) - real) == []

    def test_every_header_that_the_engine_reads_is_classified(self, questions: Questions) -> None:
        """A header can replace a field: classify it in the plugin's fields.py (plain_headers or refused_headers)."""
        fields = self.engine.request_fields
        known = {*fields.plain_headers, *(name for _, names in fields.refused_headers for name in names)}
        new = sorted(set(questions.ask("headers")) - known)
        assert new == [], f"new in {questions.version}: classify these in the fields.py of {self.engine.plugin_name}"

    def test_every_variable_with_a_suspicious_name_is_classified(self, questions: Questions) -> None:
        """A variable in no list is new: reserve it in the plugin's reserved.py, or add it to `judged` in its test_fields.py."""
        known = {*dict(self.engine.reserved.environment), *self.judged}
        named = [name for name in questions.ask("variables") if SUSPICIOUS_VARIABLE.search(name)]
        new = sorted(set(named) - known)
        assert new == [], (
            f"new in {questions.version}: reserve these in reserved.py of {self.engine.plugin_name}, or judge them"
        )

    def test_every_classified_variable_exists(self, asked: Callable[[str], Questions]) -> None:
        """Some supported version has it, so it is not misspelt."""
        real = {name for version in self.engine.supported_versions for name in asked(version).ask("variables")}
        assert sorted(set(self.judged) - real) == []


class FieldRules:
    """Rules about the lists themselves."""

    engine: ClassVar[type[ChatServer]]

    def test_every_field_is_in_one_list(self) -> None:
        """It is plain, bounded or refused."""
        assert [name for name, count in Counter(self.engine.request_fields.all()).items() if count > 1] == []

    def test_every_refused_field_is_refused_with_its_reason(self) -> None:
        """The launcher's rules come from the lists."""
        fields = self.engine.request_fields
        rules = PublicRequestRules.from_environment(fields, {})
        assert rules.refused == {name: why for why, names in fields.refused for name in names}
