"""Redaction of secrets in messages of foreign exceptions, which end up in rows, logs and terminals.

Storage libraries put request addresses, headers and whole XML responses into their messages. Secrets are masked by
their shape, and by their value where this process knows the value. Credentials are never requested over the network
for this: those of a role leave the machine only as a token, which is recognized by its header.
"""

import os
import re
from urllib.parse import quote, quote_plus, unquote

import botocore.session
from botocore.exceptions import BotoCoreError

MASK = "***"

SIGNATURE_NAMES = (
    r"x-amz-[a-z0-9-]+|x-goog-[a-z0-9-]+|awsaccesskeyid|signature|policy|key-pair-id|sig|skoid|sktid|ske|skt|sks|skv"
    r"|(?:access_?|auth_?|id_?|refresh_?|session_?)?token|api_?key|password|passwd|pwd|secret"
)
"""Regular expression (case-insensitive) for the names of query parameters that grant access."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# '@' is legal in a path: user information ends before the first '/', '?' or '#'.
_USER_INFO = re.compile(r"(?<=://)[^\s/?#@\"'<>]+(?:@[^\s/?#@\"'<>]+)*@")
_PARAMETER = re.compile(rf"(?i)((?:[?&;]|%3f|%26|\\u0026)(?:{SIGNATURE_NAMES})(?:=|%3d))(?:(?!%26)[^\s&\"'<>#;)])+")
_HEADER = re.compile(
    r"(?i)((?:proxy-)?authorization|x-amz-security-token|x-amz-credential|x-api-key|cookie|set-cookie)"
    r"([\"']?\s*[:=]\s*)(?:b?\"[^\"]*\"|b?'[^']*'|[^\r\n]+)"
)
_SCHEME = re.compile(
    r"(?i)\b(AWS4-HMAC-SHA256|AWS4-ECDSA-P256-SHA256|Bearer|Basic|AWS)\s+[A-Za-z0-9+/=._~:-]{8,}[^\r\n<\"']*"
)
_ASSIGNMENT = re.compile(
    r"(?i)((?:aws_)?(?:secret_access_key|access_key_id|session_token|secret_?key|access_?key|client_secret|password)"
    r"[\"']?\s*[:=]\s*[\"']?)[^\s,\"'}&)]+"
)
_ELEMENT = re.compile(
    r"(?is)<(AWSAccessKeyId|StringToSign|StringToSignBytes|SignatureProvided|CanonicalRequest|CanonicalRequestBytes"
    r"|SecretAccessKey|SessionToken|Token(?:-\d)?)>.*?(?:</\1>|\Z)"
)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{12,}\b")
_SHORTEST_SECRET = 4
_IN_ENVIRONMENT = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")


def redact(text: str) -> str:
    """Return `text` with all secrets masked, and without terminal colours.

    Masks the AWS credentials and the Ray token of this process, authorization headers, signature parameters, user
    information in addresses, and the parts of a signature that S3 repeats in its responses.
    """
    text = _ANSI.sub("", text)
    for secret in _known_secrets():
        text = text.replace(secret, MASK)
    text = _ELEMENT.sub(rf"<\1>{MASK}</\1>", text)
    text = _HEADER.sub(rf"\1\2{MASK}", text)
    text = _PARAMETER.sub(rf"\1{MASK}", text)
    text = _USER_INFO.sub(f"{MASK}@", text)
    text = _SCHEME.sub(rf"\1 {MASK}", text)
    text = _ASSIGNMENT.sub(rf"\1{MASK}", text)
    return _KEY_ID.sub(MASK, text)


def contains_secret(text: str) -> bool:
    """Return whether a text of a job, such as an address, contains a credential of a store or a cluster.

    Authorization schemes ("Basic ...") are ignored here, because a condition over titles may contain such words.
    """
    shapes = (_USER_INFO, _PARAMETER, _ASSIGNMENT, _KEY_ID)
    return any(secret in text for secret in _known_secrets()) or any(shape.search(text) for shape in shapes)


def summarize_error(error: BaseException, limit: int = 500) -> str:
    """Return the redacted message of `error` on one line of at most `limit` characters, or its class if it is empty."""
    line = " ".join(redact(str(error)).split()) or type(error).__name__
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _known_secrets() -> list[str]:
    """Return the keys and tokens of this machine in every URL encoding that may occur, the longest first."""
    values = {os.environ.get(name) for name in _IN_ENVIRONMENT}
    values.update(_profile_secrets())
    known = {value for value in values if value and len(value) >= _SHORTEST_SECRET}
    spellings = known | {spell(value, safe="") for value in known for spell in (quote, quote_plus)}
    spellings |= {unquote(value) for value in known}
    return sorted(spellings, key=lambda value: (-len(value), value))


def _profile_secrets() -> list[str | None]:
    """Return access key, secret and token of every profile in the AWS configuration files."""
    try:
        profiles = botocore.session.get_session().full_config.get("profiles", {})
    except (BotoCoreError, OSError):
        return []
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return [profile.get(name) for profile in profiles.values() for name in names]
