"""Recognises secrets: by the name of a variable or flag, and by the shape of the value.

All functions are pure. A result names the kind of secret, and never holds the value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "BY_NAME",
    "looks_secret",
    "secret_arguments",
    "secret_kind",
    "secret_value",
    "secrets_in",
    "set_by_platform",
]

BY_NAME = "its name says so"
"""The kind of a secret that is recognised by its name only."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALWAYS = _words(
    "SECRET SECRETS PASSWORD PASSWORDS PASSWD PASSWDS PSWD PASSPHRASE PASSPHRASES PASSCODE CREDENTIAL CREDENTIALS CREDS "
    "BEARER AUTHORIZATION COOKIE COOKIES JWT DSN NETRC WEBHOOK WEBHOOKS MNEMONIC PRIVKEY CONNSTR CONNECTIONSTRING"
)
"""A name with one of these words, at any position, holds a secret."""

_PAIRS = frozenset({"CONNECTION STRING", "CONN STR", "CONN STRING", "PASS PHRASE", "SEED PHRASE", "RECOVERY PHRASE"})

_AT_END = _words("PASS PW PWD PAT SK SAS PEM CRED AUTH")
"""A name that ends in one of these words holds a secret; some are also followed by one of `_AFTER_END`."""
_AFTER_END = _words("HEADER HEADERS CONFIG STRING DATA VALUE JSON TOKEN URL")

_GLUED = re.compile(
    r"(TOKENS?|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|COOKIE|DSN"
    r"|(API|ACCESS|PRIVATE|SECRET|AUTH|LICENSE|SIGNING|ENCRYPTION|MASTER|SSH|ACCOUNT|STORAGE|ADMIN|DEPLOY|PRIV)KEYS?"
    r"|(DB|SSH|PG|MY|SQL|USER|ROOT|SMTP|MAIL|REDIS|LDAP|ADMIN|FTP|MYSQL|POSTGRES|DATABASE|PROXY)(PASS|PWD|PW))$"
)
"""Names without underscores: HFTOKEN, MYAPIKEY, PGPASSWORD, SSHPASS."""

_PLACES = _words(
    "FILE FILES PATH PATHS DIR DIRS DIRECTORY FOLDER HOME URL URLS URI ENDPOINT HOST HOSTS HOSTNAME PORT SOCK SOCKET NAME NAMES "
    "TYPE METHOD MODE ENABLED DISABLED REQUIRED TTL TIMEOUT EXPIRY EXPIRES EXPIRATION DURATION LENGTH LEN SIZE COUNT LIMIT "
    "LIMITS RATIO RATE VERSION ALGORITHM ALG ISSUER AUDIENCE DOMAIN PROVIDER BACKEND DRIVER STORE PREFIX SUFFIX FORMAT POLICY "
    "SCHEME CLASS ARN REGION THRESHOLD BUDGET PROB USAGE INTERVAL S MS SECONDS"
)
"""A name that ends in one of these words names a place, a setting or a quantity, not the secret itself."""

_SWITCHES = _words("ENABLE ENABLED DISABLE DISABLED ALLOW REQUIRE REQUIRED SKIP USE NO LOG VALIDATE VERIFY CHECK")
"""A name with one of these words switches something on or off."""

_NOT_CREDENTIAL_TOKEN = _words(
    "MAX MIN NUM NEW PER TO NEXT CHUNK PREFILL DECODE BATCH BATCHED INPUT OUTPUT PROMPT COMPLETION GENERATED TOTAL QUERY THINK "
    "THINKING BUDGET CONTEXT LIMIT STOP SPECIAL DRAFT SPEC SPECULATIVE DISPATCH RECV CACHED SCHEDULED QUEUED EOS BOS PAD UNK MASK "
    "SEP CLS IMAGE VIDEO AUDIO PLACEHOLDER VIT ACC IDS BLOCK ACTIVATION ACROSS ORACLE ASSERT LONG FIRST LAST STREAM EXPERT RANK "
    "SAMPLED RATIO COUNT USAGE"
)
"""Words beside TOKEN in names that count tokens of text."""

_NOT_SECRET_KEY = _words(
    "PUBLIC PUB SORT CACHE PRIMARY FOREIGN PARTITION ROUTING HOT GROUP INDEX LOOKUP HASH DICT MAP MAX MIN NUM COUNT SHORTCUT "
    "COMPOSE SHARD ESCAPE PREFIX ANY GRAPH CONFIG OBJECT JSON ROW COLUMN META LABEL METRIC"
)
"""Words before KEY in names of data keys."""
_SECRET_KEY_BEFORE = _words("API ACCESS PRIVATE SECRET AUTH LICENSE SIGNING ENCRYPTION MASTER ADMIN")
_AFTER_KEY = _words("ID PEM BASE64 B64 VALUE JSON DATA")

_NOT_PASS = _words("FORWARD BACKWARD ONE TWO SINGLE MULTI FIRST SECOND RENDER HIGH LOW BAND ALL FUSION OPT COMPILE PER")
_HARMLESS_NAMES = frozenset({"PWD", "OLDPWD"})
_PLATFORM_NAMES = frozenset({"MODAL_IDENTITY_TOKEN"})
_PLATFORM_PREFIX = "MODAL_"
_PLATFORM_SIGNS = ("MODAL_TASK_ID", "MODAL_IS_REMOTE")
_USERS_OWN = frozenset({"MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"})

_NUMBER = re.compile(r"[+-]?\d{1,9}(\.\d{1,9})?")
_SWITCH_VALUE = re.compile(r"[01]|true|false|yes|no|on|off|none|null|auto", re.IGNORECASE)
_COUNTED = frozenset({"KEYS", "TOKENS"})
_SWITCHED = _COUNTED | _words("KEY PASS PW PAT SK SAS AUTH COOKIE COOKIES")
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{40}([\s,]+[0-9A-Fa-f]{40})*")

_EDGE = r"(?<![A-Za-z0-9_-])"
_WITH_DIGIT = r"(?=[A-Za-z0-9_-]{0,256}\d)"
_VALUE_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a private key", re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY|AGE-SECRET-KEY-1|PuTTY-User-Key-File-\d")),
    (
        "a URL with a password",
        # The part before @ may hold a slash that was not escaped; a port before the path is no password.
        re.compile(r"://[^\s/@:?#]{0,256}:(?!\d{1,5}(?:[/,;?#\s]|$))(?!\*+@|\$\{?\w{1,64}\}?@)[^\s@]{1,512}@"),
    ),
    ("a URL with a token", re.compile(r"://(?=[A-Za-z_.~%-]{0,256}\d)[A-Za-z0-9_.~%-]{20,512}@")),
    (
        "an address with a password",
        re.compile(r"^[^\s/@:,]{1,256}:(?!\*+@|\$\{?\w{1,64}\}?@)[^\s/@,]{1,512}@[A-Za-z0-9.-]{1,256}:\d{2,5}/?$"),
    ),
    ("a signed URL", re.compile(r"[?&](?:sig|X-Amz-Signature|X-Goog-Signature|access_token|api_?key|token)=[^&\s]{8}")),
    (
        "a webhook address",
        re.compile(
            r"https://(?:hooks\.slack\.com/(?:services|workflows)/\w|discord(?:app)?\.com/api/webhooks/\d|api\.telegram\.org/bot\d)"
        ),
    ),
    ("a Hugging Face token", re.compile(_EDGE + r"(?:hf|api_org)_[A-Za-z0-9]{20}")),
    ("a GitHub token", re.compile(_EDGE + r"(?:gh[pousr]_[A-Za-z0-9]{20}|github_pat_\w{20})")),
    ("a GitLab token", re.compile(_EDGE + r"gl(?:pat|ptt|dt|rt|cbt|soat)-[A-Za-z0-9_.-]{16}")),
    ("an AWS access key", re.compile(r"(?<![A-Z0-9])A(?:KIA|SIA)[A-Z0-9]{16}(?![A-Z0-9])")),
    ("a Slack token", re.compile(_EDGE + r"(?:xox[a-z](?:\.xox[a-z])?|xapp)-[A-Za-z0-9-]{10}")),
    ("a Google key", re.compile(_EDGE + r"(?:AIza[A-Za-z0-9_-]{30}|ya29\.[A-Za-z0-9_-]{20}|GOCSPX-[A-Za-z0-9_-]{20})")),
    ("a payment key", re.compile(_EDGE + r"(?:[sr]k|whsec)_(?:live_|test_)?[A-Za-z0-9]{20}")),
    (
        "a Modal token",
        re.compile(
            _EDGE + r"(?:a[ks]|w[ks])-(?=[A-Za-z0-9]{0,64}\d)(?=[A-Za-z0-9]{0,64}[A-Z])[A-Za-z0-9]{16,64}(?![\w-])"
        ),
    ),
    ("an API key", re.compile(_EDGE + r"(?:sk|pk|rk)-" + _WITH_DIGIT + r"[A-Za-z0-9_-]{20}")),
    (
        "an API key",
        re.compile(_EDGE + r"(?:nvapi-|gsk_|r8_|xai-|pplx-|fw_|tgp_v1_|dckr_pat_|npm_|pypi-|dop_v1_|shpat_)\w{16}"),
    ),
    (
        "an API key",
        re.compile(_EDGE + r"(?:SG\.[\w-]{16,64}\.[\w-]{16}|hv[sb]\.[\w-]{20}|tskey-\w{1,16}-\w{10}|lin_api_\w{20})"),
    ),
    ("a JSON web token", re.compile(_EDGE + r"eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,8192}\.")),
    (
        "an authorization header",
        re.compile(r"\b(?:bearer|basic)\s{1,4}(?=[A-Za-z._~+/-]{0,512}[\d=])[A-Za-z0-9._~+/=-]{12}", re.IGNORECASE),
    ),
    (
        "a connection string with a password",
        re.compile(
            r"(?:^|[;\s?&])(?:AccountKey|SharedAccessKey|SharedAccessSignature|Password|Pwd)\s{0,4}=\s{0,4}(?![$*<])[^;\s&]{3}",
            re.IGNORECASE,
        ),
    ),
    ("a login of .netrc", re.compile(r"\blogin\s{1,8}\S{1,256}\s{1,8}password\s{1,8}\S", re.IGNORECASE)),
    ("registry credentials", re.compile(r'"(?:auth|identitytoken|private_key)"\s{0,8}:\s{0,8}"[A-Za-z0-9+/=-]{8}')),
)


def looks_secret(name: str) -> bool:
    """Whether the name of a variable or flag says that it holds a secret.

    Args:
        name: `HF_TOKEN`, `hf-token`, `hfToken`, ...
    """
    if name.upper() in _HARMLESS_NAMES:
        return False
    words = [word.upper() for word in _WORDS.findall(name)]
    if not words:
        return False
    if {"WEBHOOK", "WEBHOOKS"} & set(words) and words[-1] in ("WEBHOOK", "WEBHOOKS", "URL", "URLS", "URI"):
        return True
    if words[-1] in _PLACES or _SWITCHES & set(words[:-1]):
        return False
    return any(_says_secret(words, at) for at in range(len(words)))


def secret_value(value: str) -> str | None:
    """The kind of secret that the shape of a value shows, whatever its name; None for none."""
    return next((kind for kind, shape in _VALUE_KINDS if shape.search(value)), None)


def secret_kind(name: str, value: str) -> str | None:
    """The kind of secret that a variable holds, by its name or its value; None for none, and for an empty value.

    Returns:
        `BY_NAME` if the name says it, else the kind that the value's shape shows.
    """
    if not value:
        return None
    if looks_secret(name) and not _is_plain(name, value):
        return BY_NAME
    return secret_value(value)


def secrets_in(env: Mapping[str, str]) -> dict[str, str]:
    """Name and kind of each variable that holds a secret, without variables that the platform sets."""
    found = {name: secret_kind(name, value) for name, value in sorted(env.items())}
    return {name: kind for name, kind in found.items() if kind and not set_by_platform(name, env)}


def secret_arguments(argv: Sequence[str]) -> dict[str, str]:
    """Flag and kind of each secret on a command line: `--api-key X`, `--api-key=X`, and values of a known shape."""
    found = {}
    for flag, value in _flags(argv):
        if kind := secret_kind(flag.lstrip("-"), value):
            found[flag or "an argument"] = kind
    return found


def set_by_platform(name: str, env: Mapping[str, str]) -> bool:
    """Whether the platform sets this variable in every container, where nobody can remove it.

    Modal sets a short-lived identity token (modal.com/docs/guide/environment_variables); later versions may add more.

    Args:
        name: of the variable.
        env: the environment that holds it.
    """
    if name in _PLATFORM_NAMES:
        return True
    inside = any(env.get(sign) for sign in _PLATFORM_SIGNS)
    return inside and name.startswith(_PLATFORM_PREFIX) and name not in _USERS_OWN


def _says_secret(words: Sequence[str], at: int) -> bool:
    """Whether the word at this position says that the name is a secret's."""
    word, before, after = words[at], words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
    if word in ("KEY", "KEYS"):
        data = before in _NOT_SECRET_KEY or (bool(after) and after not in _AFTER_KEY)
        return before in _SECRET_KEY_BEFORE or not data
    if word in _AT_END:
        ends = not after or (after in _AFTER_END and word in ("AUTH", "SAS", "PAT"))
        return ends and not (word == "PASS" and before in _NOT_PASS)
    if word in _ALWAYS or f"{before} {word}" in _PAIRS:
        return True
    return bool(_GLUED.search(word)) and not (word.endswith(("TOKEN", "TOKENS")) and _is_of_text(words, at))


def _is_of_text(words: Sequence[str], at: int) -> bool:
    """Whether TOKEN means tokens of text: the words beside it say so, or it is a maximum or a count."""
    beside = {*words[max(0, at - 1) : at], *words[at + 1 : at + 2]}
    counted = words[at].endswith("S") and not {"MAX", "MIN", "NUM"}.isdisjoint(words)
    return counted or not beside.isdisjoint(_NOT_CREDENTIAL_TOKEN)


def _is_plain(name: str, value: str) -> bool:
    """Whether the value is no secret, although the name sounds like one: a number, a switch, a folder, a fingerprint."""
    words = [word.upper() for word in _WORDS.findall(name)]
    if words[-1] == "PWD" and value.startswith("/"):
        return True  # a working directory
    if words[-1] in ("KEY", "KEYS") and _FINGERPRINT.fullmatch(value) and words[0] in ("GPG", "PGP"):
        return True  # GPG_KEY of Python's own images is the fingerprint of a public key
    if _SECRET_KEY_BEFORE & set(words[-2:-1]):
        return False
    return bool(
        (words[-1] in _COUNTED and _NUMBER.fullmatch(value))
        or (words[-1] in _SWITCHED and _SWITCH_VALUE.fullmatch(value))
    )


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every value on a command line, with its flag."""
    flag = ""
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            if equals:
                yield flag, value
        else:
            yield flag, word
