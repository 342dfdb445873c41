"""One word for one thing: no code, message, help text or page contains a word that Torpor no longer uses."""

from __future__ import annotations

import functools
import re
import subprocess
from dataclasses import dataclass

import pytest
from scripts.site.commands import command_names, help_of

from tests import ROOT

NO_FILE = r"(?!)"


@dataclass(frozen=True)
class Old:
    """A word that another one replaced.

    Attributes:
        word: as a reader knows it.
        instead: the word of docs/glossary.md, or plain English.
        pattern: finds it.
        allowed: patterns of its other meanings, which may stay.
        files: files in which it has another meaning throughout, as patterns of paths.
    """

    word: str
    instead: str
    pattern: str
    allowed: str = r"(?!)"
    files: str = NO_FILE


OLD_WORDS = (
    Old(
        "copy",
        "replica",
        r"(?i)\b(?:a|an|the|each|every|one|no|last|other|this|that|any|own|restored|first|second)[ _](?:\w+ )?copys?\b"
        r"|(?<![a-z])copies(?![a-z])(?! (?:the|a|an|GPU|memory|what|it|its|them|files?|everything|only|no|all|byte)\b)"
        r"|def test\w*_cop(?:y|ys|ies)(?:_|\b)",
        # of files, memory and values
        allowed=r"shutil\.copy\w*|no hop and no copy|--copies|copies (?:as before|no token)"
        r"|CRIU copies|(?:truncated|old|own|readable) copy"
        r"|copy of (?:it|them|a document|the (?:volume|snapshot, free|whole folder)|its checkout|`apps)|what is named is a copy"
        r"|copies of the weights|copy in another format|takes? a copy|no copy takes more room|two copies\.\"|the copy's target",
        files=r"LICENSE|gpu_copy\.py|kept_memory\.py|build_steps/|mapped_memory\.py|mapped_runs\.py|limited_h11\.py",
    ),
    Old("bring back", "restore, wake", r"(?i)\b(?:bring|brings|brought|bringing)[ _](?:\w+[ _])?back\b"),
    Old("front", "gateway", r"(?i)\bfronts?\b|\bfront_\w+", allowed=r"(?i)\bin front\b"),
    Old(
        "peers",
        "replicas",
        r"\b[Pp]eers?\b",
        files=r"kernel_objects\.py|tables\.py|channel\.py|sandbox\.py",  # the other end of a socket
    ),
    Old("boot id", "replica id", r"(?i)\bboot ids?\b", allowed=r"(?i)kernel's boot id|\bboot id is the kernel's"),
    Old(
        "Target",
        "replica",
        r"\bTargets?\b(?!=)",
        files=r"tests/(?:docs|report|modal_plane)/|\.md$|exit_codes\.py",
    ),
    Old("how manieth", "number", r"manieth"),
    Old("anew", "again, new", r"(?i)\banew\b"),
    Old("to be told from", "cannot be distinguished from", r"(?i)to be told from"),
    Old("cannot be had", "is not available", r"(?i)\bbe had\b"),
    Old("nothing stands out", "no problems found", r"(?i)nothing stands out"),
    Old("stands in the way", "prevents, blocks", r"(?i)\bstands? in (?:the|its|their) way\b"),
    Old("for want of", "because there is no", r"(?i)\bfor want of\b"),
    Old("mend", "repair, correct", r"(?i)\bmend(?:s|ed|ing)?\b", files=r"CHANGELOG\.md"),
    Old("go on with", "continue with", r"(?i)\b(?:could|can|cannot) go on with\b"),
    Old("as it goes", "on use", r"(?i)\bgets it as it goes\b"),
    Old("must not differ", "is the same", r"(?i)\bwhat must not differ\b"),
    Old("such a one", "one", r"(?i)\bsuch a one\b|\bso that one\b, that"),
    Old(
        "whereof and the like",
        "of which, in which, with it",
        r"(?i)\b(?:hitherto|whilst|amongst|(?:where|there|here)(?:of|in|upon|with|unto)|henceforth|heretofore|nought)\b",
        files=r"LICENSE",
    ),
    Old("in order to", "to", r"(?i)\bin order to\b"),
    Old("utilise", "use", r"(?i)\butili[sz]e[sd]?\b"),
    Old("simply", "(nothing)", r"(?i)\bsimply\b|\bseamless(?:ly)?\b|\bblazing(?:ly)?\b|\bleverag(?:e[sd]?|ing)\b"),
)

TEXTS = re.compile(r"\.(?:py|md|yml|toml|template|css|html|js|service|txt|svg)$|Makefile$|scripts/[\w-]+$")
JOINT = re.compile(r"[ \t]*[\"']?[ \t]*\n[ \t]*(?:[#>*] ?|//[ ]?|[fr]?[\"'])?[ \t]*")
"""Between two lines of one sentence: of a paragraph, a docstring, a comment, or a message in several strings."""
OWN = {"tests/test_vocabulary.py", "tests/docs/addresses-0.1.txt", "docs/glossary.md"}


@functools.cache
def texts() -> dict[str, str]:
    """By path, every text of the repository that people read. Old release notes keep their words."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    return {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in listed.splitlines()
        if TEXTS.search(name) and name not in OWN and (ROOT / name).is_file()
    }


@functools.cache
def joined_texts() -> dict[str, str]:
    """The same texts, each on one line."""
    return {path: JOINT.sub(" ", text) for path, text in texts().items()}


def _hits(old: Old, joined: str) -> list[re.Match[str]]:
    """Where a text on one line has a phrase in its old meaning."""
    if not re.search(old.pattern, joined):
        return []
    return list(re.finditer(old.pattern, re.sub(old.allowed, "", joined)))


def has(old: Old, line: str) -> bool:
    """Whether the line contains the old word in its old meaning."""
    return re.search(old.pattern, re.sub(old.allowed, "", line)) is not None


def found(old: Old) -> list[str]:
    """Every place with the old word, as `path:line: text`."""
    places = []
    for path, text in texts().items():
        if re.search(old.files, path) or not re.search(old.pattern, text):
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if has(old, line):
                places.append(f"{path}:{number}: {line.strip()[:120]}")
    return places


def broken(old: Old) -> list[str]:
    """Every place with an old phrase, also where a line ends in it, as `path: ...text...`."""
    return [
        f"{path}: ...{text[max(0, one.start() - 40) : one.end() + 40]}..."
        for path, text in joined_texts().items()
        if not re.search(old.files, path)
        for one in _hits(old, text)
    ]


@pytest.mark.parametrize("old", OLD_WORDS, ids=lambda old: old.word)
def test_no_file_contains_an_old_word(old: Old) -> None:
    """Code, JSON keys, messages, help texts, tests and pages."""
    places = found(old)
    assert places == [], f"{old.word!r} is {old.instead!r} now"


@pytest.mark.slow
@pytest.mark.parametrize("old", [old for old in OLD_WORDS if " " in old.word], ids=lambda old: old.word)
def test_no_file_contains_an_old_phrase_in_two_lines(old: Old) -> None:
    """Of a paragraph, a docstring, a comment or a message."""
    assert broken(old) == [], f"{old.word!r} is {old.instead!r} now"


@functools.cache
def help_texts() -> dict[str, str]:
    """What every command prints for `--help`, each on one line, by its words."""
    return {" ".join(words): " ".join(help_of(words).split()) for words in command_names()}


@pytest.mark.parametrize("old", [old for old in OLD_WORDS if old.files == NO_FILE], ids=lambda old: old.word)
def test_no_help_text_contains_an_old_word(old: Old) -> None:
    """As it is printed. Words with another meaning in some files are looked for in the sources alone."""
    assert [f"torpor {words}" for words, text in help_texts().items() if has(old, text)] == []


def test_a_phrase_is_found_across_lines() -> None:
    """Of a paragraph, a comment, and a message in two strings."""
    (phrase,) = (old for old in OLD_WORDS if old.word == "stands in the way")
    for text in (
        "what stands\nin the way",
        "# what stands\n    # in the way",
        'f"what stands "\n        f"in the way"',
    ):
        assert has(phrase, JOINT.sub(" ", text)), text
    assert not has(phrase, JOINT.sub(" ", "what stands.\n\nIn the way"))


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("restores three copies of a snapshot", "copy"),
        ("each copy maps its memory", "copy"),
        ("def test_a_copy_serves() -> None:", "copy"),
        ("shutil.copy(source, target)", None),
        ("what CRIU copies", None),
        ("CRIU brings it back", "bring back"),
        ("the front passes it on", "front"),
        ("the guard in front of the engine", None),
        ("its boot id", "boot id"),
        ("the kernel's boot id", None),
        ("write the file anew", "anew"),
        ("what stands in its way", "stands in the way"),
        ("a push mends it", "mend"),
        ("in order to start", "in order to"),
        ("recommended", None),
    ],
)
def test_an_old_word_is_recognised_by_its_meaning(line: str, word: str | None) -> None:
    """Other meanings of the same word may stay."""
    assert [old.word for old in OLD_WORDS if has(old, line)] == ([word] if word else [])
