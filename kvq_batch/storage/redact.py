"""One redactor for the messages of foreign exceptions, because they travel far: into rows, logs and terminals.

Storage libraries put request addresses, headers and whole XML answers into their messages. What may open a store is
masked by its shape, and by its value where this process knows the value. This module asks no network for credentials:
those of a role never leave the machine except as a token, and a token is known by its header.
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
"""Names of query parameters that carry a right to read; a regular expression, to be matched without case."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# An '@' is legal in a path: user information ends at the first '/', '?' or '#' at the latest.
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
    """`text` without anything that opens a store, and without terminal colours; what stays is what a person needs.

    Masked are the values of this process' own AWS credentials and Ray token, authorization headers, signature
    parameters, user information in addresses, and what S3 repeats of a signature in its answers.
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


def holds_secret(text: str) -> bool:
    """Whether a text of a job, an address say, carries something that opens a store or a cluster.

    Words that only announce a credential ("Basic ...") do not count here: a condition over titles may well hold them.
    """
    shapes = (_USER_INFO, _PARAMETER, _ASSIGNMENT, _KEY_ID)
    return any(secret in text for secret in _known_secrets()) or any(shape.search(text) for shape in shapes)


def summary(error: BaseException, limit: int = 500) -> str:
    """The redacted message of `error` on one line of at most `limit` characters; its class where it says nothing."""
    line = " ".join(redact(str(error)).split()) or type(error).__name__
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _known_secrets() -> list[str]:
    """Keys and tokens that this machine holds, in each spelling that an address may give them, the longest first."""
    values = {os.environ.get(name) for name in _IN_ENVIRONMENT}
    values.update(_profile_secrets())
    known = {value for value in values if value and len(value) >= _SHORTEST_SECRET}
    spellings = known | {spell(value, safe="") for value in known for spell in (quote, quote_plus)}
    spellings |= {unquote(value) for value in known}
    return sorted(spellings, key=lambda value: (-len(value), value))


def _profile_secrets() -> list[str | None]:
    """Access key, secret and token of every profile in the files of the AWS chain; empty where there are none."""
    try:
        profiles = botocore.session.get_session().full_config.get("profiles", {})
    except (BotoCoreError, OSError):
        return []
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return [profile.get(name) for profile in profiles.values() for name in names]
