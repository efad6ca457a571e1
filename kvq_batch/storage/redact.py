"""Redaction of secrets in messages of foreign exceptions, which end up in rows, logs and terminals.

Storage libraries put request addresses, headers and whole XML responses into their messages. Secrets are masked by
their shape, and by their value where this process knows the value. Credentials are never requested over the network
for this: those of a role leave the machine only as a token, which is recognized by its header.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, quote_plus, unquote

MASK = "***"

SIGNATURE_NAMES = (
    r"x-(?:amz|goog|oss|tos|obs|cos|bce)-[a-z0-9-]+|(?:aws|oss)accesskeyid|googleaccessid|signature|sign|policy"
    r"|key-pair-id|sig|skoid|sktid|ske|skt|sks|skv|hmac|q-(?:sign|ak|key|header|url)[a-z-]*|hdn(?:ts|ea|tl)|jwt|auth_key"
    r"|(?:access|auth|id|refresh|session|security|sas)?[_-]*token[_-]*|(?:ws|tx)secret|api_?key|password|passwd|pwd|secret"
)
"""Regular expression (case-insensitive) for the names of query parameters that grant access."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# '@' is legal in a path: user information ends before the first '/', '?' or '#'.
_USER_INFO = re.compile(r"(?<=://)[^\s/?#@\"'<>]+(?:@[^\s/?#@\"'<>]+)*@")
_PARAMETER = re.compile(rf"(?i)((?:[?&;]|%3f|%26|\\u0026)(?:{SIGNATURE_NAMES})(?:=|%3d))(?:(?!%26)[^\s&\"'<>#;)\\])+")
_HEADER = re.compile(
    r"(?i)((?:proxy-)?authorization|x-amz-security-token|x-amz-credential|x-api-key|cookie|set-cookie)"
    r"([\"']?\s*[:=]\s*)(?:b?\"[^\"]*\"|b?'[^']*'|[^\r\n]+)"
)
_SCHEME = re.compile(
    r"(?i)\b(AWS4-HMAC-SHA256|AWS4-ECDSA-P256-SHA256|Bearer|Basic|AWS)\s+[A-Za-z0-9+/=._~:-]{8,}[^\r\n<\"']*"
)
_ASSIGNMENT = re.compile(
    r"(?i)((?:aws_)?(?:secret_access_key|access_key_id|session_token|secret_?key|(?:shared)?access_?key|account_?key"
    r"|client_secret|api_?key|sas_token|auth_token|private_key|password)"
    r"[\"']?\s*[:=]\s*[\"']?)[^\s,\"'}&);\\]+"
)
_ELEMENT = re.compile(
    r"(?is)<(AWSAccessKeyId|StringToSign|StringToSignBytes|SignatureProvided|CanonicalRequest|CanonicalRequestBytes"
    r"|SecretAccessKey|SessionToken|Token(?:-\d)?)>.*?(?:</\1>|\Z)"
)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{12,}\b")
_TOKEN = re.compile(
    r"\b(?:eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|hf_[A-Za-z0-9]{30,}|AIza[A-Za-z0-9_-]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}|glpat-[A-Za-z0-9_-]{20,})"
)
_BEARER = re.compile(r"(?i)\b(Bearer)\s+[A-Za-z0-9+/=._~-]{20,}")
_AUTHORIZATION = re.compile(
    r"(?i)((?:proxy-)?authorization|x-amz-security-token|x-api-key)([\"']?\s*[:=]\s*[\"']?)"
    r"(?:(?:basic|bearer|token|aws)\s+)?[^\s\"'\\]+"
)
# In data, only what is exactly as long as an access key and has its alphabet (base32): "ASIA20261231HIGHLIGHTS" is not.
_KEY_ID_IN_DATA = re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z2-7]{16}\b")
_SHORTEST_SECRET = 4
_SHORTEST_IN_DATA = 16
_SECRET_VARIABLE = re.compile(
    r"(?i)(?:SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|API_KEY|ACCOUNT_KEY|PRIVATE_KEY|STORAGE_KEY|CONNECTION_STRING)$"
)
_IN_ENVIRONMENT = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")


def redact(text: str) -> str:
    """Return `text` with all secrets masked, and without terminal colours.

    Masks the credentials in the environment of this process (AWS, Ray, and variables that end in TOKEN, SECRET,
    PASSWORD and similar names), those of AWS profiles, authorization headers, signature parameters, user
    information in addresses, and the parts of a signature that S3 repeats in its responses.
    """
    return _redact(text, _known_secrets())


def _redact(text: str, secrets: Sequence[str]) -> str:
    text = _ANSI.sub("", text)
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _ELEMENT.sub(rf"<\1>{MASK}</\1>", text)
    text = _HEADER.sub(rf"\1\2{MASK}", text)
    text = _PARAMETER.sub(rf"\1{MASK}", text)
    text = _USER_INFO.sub(f"{MASK}@", text)
    text = _SCHEME.sub(rf"\1 {MASK}", text)
    text = _ASSIGNMENT.sub(rf"\1{MASK}", text)
    return _TOKEN.sub(MASK, _KEY_ID.sub(MASK, text))


_SHAPES_IN_DATA: tuple[tuple[re.Pattern[str], str], ...] = (
    (_PARAMETER, rf"\1{MASK}"), (_USER_INFO, f"{MASK}@"), (_AUTHORIZATION, rf"\1\2{MASK}"), (_BEARER, rf"\1 {MASK}"),
    (_ASSIGNMENT, rf"\1{MASK}"), (_TOKEN, MASK),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DataMask:
    """Masks secrets in data: ids, titles and addresses, of which all other characters are kept.

    Unlike `redact`, it ignores what may also be a title ("Basic instincts", "Cookie: a film"), and short values of
    the environment, which may also be words. `pattern` is a regular expression for RE2 that matches every text that
    the mask changes, and few others.
    """

    secrets: tuple[str, ...]
    pattern: str
    _all_secrets: tuple[str, ...]

    @classmethod
    def of_this_process(cls) -> Self:
        """Return the mask for the secrets of this process and for the shapes of all others."""
        known = tuple(_known_secrets())
        secrets = tuple(secret for secret in known if len(secret) >= _SHORTEST_IN_DATA)
        # RE2 has no look-around: these begin the shapes above.
        starts = (
            rf"(?i)(?:[?&;]|%3f|%26|\\u0026)(?:{SIGNATURE_NAMES})(?:=|%3d)", r"://[^\s/?#]+@",
            *(shape.pattern for shape in (_AUTHORIZATION, _BEARER, _ASSIGNMENT, _KEY_ID_IN_DATA, _TOKEN)),
        )  # fmt: skip
        return cls(secrets, "|".join(f"(?:{part})" for part in (*starts, *map(re.escape, secrets))), known)

    def text(self, text: str) -> str:
        """Return `text` with all secrets masked. Masking twice changes nothing more."""
        text = self.values(text)
        for shape, replacement in _SHAPES_IN_DATA:
            text = shape.sub(replacement, text)
        return text

    def message(self, text: str) -> str:
        """Return the message of an error as `redact` does."""
        return self.text(_redact(text, self._all_secrets))

    def values(self, text: str) -> str:
        """Return `text` with the secrets of this process masked, and access keys of AWS."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return _KEY_ID_IN_DATA.sub(MASK, text)


def contains_secret(text: str) -> bool:
    """Return whether a text of a job, such as an address, contains a credential of a store or a cluster.

    Authorization schemes ("Basic ...") are ignored here, because a condition over titles may contain such words.
    """
    shapes = (_USER_INFO, _PARAMETER, _ASSIGNMENT, _KEY_ID, _TOKEN)
    return any(secret in text for secret in _known_secrets()) or any(shape.search(text) for shape in shapes)


def summarize_error(error: BaseException, limit: int = 500) -> str:
    """Return the redacted message of `error` on one line of at most `limit` characters, or its class if it is empty."""
    line = " ".join(redact(str(error)).split()) or type(error).__name__
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _known_secrets() -> list[str]:
    """Return the keys and tokens of this machine in every URL encoding that may occur, the longest first."""
    values = {os.environ.get(name) for name in _IN_ENVIRONMENT}
    values.update(
        value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_IN_DATA
    )
    values.update(_profile_secrets())
    known = {value for value in values if value and len(value) >= _SHORTEST_SECRET}
    spellings = known | {spell(value, safe="") for value in known for spell in (quote, quote_plus)}
    spellings |= {unquote(value) for value in known}
    return sorted(spellings, key=lambda value: (-len(value), value))


def _profile_secrets() -> list[str | None]:
    """Return access key, secret and token of every profile in the AWS configuration files."""
    files = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
    if not any(os.path.exists(os.path.expanduser(os.environ.get(name) or default)) for name, default in files):
        return []
    # Imported here because it takes 0.2 s, and most machines have no profiles.
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        profiles = botocore.session.get_session().full_config.get("profiles", {})
    except (BotoCoreError, OSError):
        return []
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return [profile.get(name) for profile in profiles.values() for name in names]
