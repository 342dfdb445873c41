"""Rules about an engine's request fields and variables: against the real models of all supported versions."""

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

SOUNDS_LIKE_A_WAY_IN = re.compile(
    "ALLOW|TRUST|INSECURE|UNSAFE|PICKLE|REQUEST|MEDIA|UPLOAD|DECOMPRESS|GRPC|HTTP|PORT$|_PORT_|ENDPOINT|PEER|SERVER|API_KEY|PLUGIN|CUSTOM|TEMPLATE|EMBED|"
    "UNSAFE"
)


class RealFieldRules:
    """What a new version brings is noticed by name.

    Attributes:
        engine: the plugin.
        judged: variables of any version that sound like a way in, or past a limit, and were judged; each with the reason.
    """

    engine: ClassVar[type[ChatServer]]
    judged: ClassVar[Mapping[str, str]]

    def test_every_field_of_a_public_request_has_been_judged(self, questions: Questions) -> None:
        """A field that no list names is new: judge it in the plugin's fields.py (plain, bounded or refused)."""
        new = sorted(set(questions.ask("fields")) - set(self.engine.request_fields.all()))
        assert new == [], f"new in {questions.version}: classify these in the fields.py of {self.engine.plugin_name}"

    def test_every_judged_field_is_real(self, asked: Callable[[str], Questions]) -> None:
        """No field is misspelt: some supported version has it."""
        real = {name for version in self.engine.supported_versions for name in asked(version).ask("fields")}
        assert sorted(set(self.engine.request_fields.all()) - real) == []

    def test_every_header_of_the_engines_own_has_been_judged(self, questions: Questions) -> None:
        """A header may say what a field says: judge it in the plugin's fields.py (plain_headers or refused_headers)."""
        fields = self.engine.request_fields
        known = {*fields.plain_headers, *(name for _, names in fields.refused_headers for name in names)}
        new = sorted(set(questions.ask("headers")) - known)
        assert new == [], f"new in {questions.version}: classify these in the fields.py of {self.engine.plugin_name}"

    def test_every_variable_that_sounds_like_a_way_in_has_been_judged(self, questions: Questions) -> None:
        """A variable that no list names is new: reserve it in the plugin's reserved.py, or judge it in its test_fields.py."""
        known = {*dict(self.engine.reserved.environment), *self.judged}
        named = [name for name in questions.ask("variables") if SOUNDS_LIKE_A_WAY_IN.search(name)]
        new = sorted(set(named) - known)
        assert new == [], (
            f"new in {questions.version}: reserve these in reserved.py of {self.engine.plugin_name}, or judge them"
        )

    def test_every_judged_variable_is_real(self, asked: Callable[[str], Questions]) -> None:
        """No variable is misspelt: some supported version has it."""
        real = {name for version in self.engine.supported_versions for name in asked(version).ask("variables")}
        assert sorted(set(self.judged) - real) == []


class FieldRules:
    """What the lists say of themselves."""

    engine: ClassVar[type[ChatServer]]

    def test_every_field_is_judged_once(self) -> None:
        """It is plain, bounded or refused."""
        assert [name for name, count in Counter(self.engine.request_fields.all()).items() if count > 1] == []

    def test_every_refused_field_is_refused_with_its_reason(self) -> None:
        """The rules of the launcher are those of the lists."""
        fields = self.engine.request_fields
        rules = PublicRequestRules.from_environment(fields, {})
        assert rules.refused == {name: why for why, names in fields.refused for name in names}
