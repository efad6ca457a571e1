"""POST of a JSON document to an address that may hold a secret, with retries."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from kvq_batch.domain.errors import SpecError, TransientError
from kvq_batch.storage.errors import RetryPolicy
from kvq_batch.storage.redact import MASK

POLICY = RetryPolicy(attempts=4, initial_delay_s=1.0, max_delay_s=8.0, max_total_s=60.0)

_TIMEOUT_S = 10.0
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Rejects redirects: urllib would follow them with a GET, without the document."""

    def redirect_request(self, *_: Any) -> None:
        return None


def mask_address(url: str) -> str:
    """Return scheme and host of `url`. Services put their secrets into the path, too."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}/{MASK}"


def post_json(url: str, document: Mapping[str, Any], policy: RetryPolicy = POLICY) -> None:
    """Send `document` to `url`, again after errors that may pass.

    Raises:
        TransientError: no success in all attempts.
        SpecError: the address is invalid, or its server rejects the document.
    """
    name = mask_address(url)
    body = json.dumps(document, allow_nan=False).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "kvq-batch"}
    opener = urllib.request.build_opener(_NoRedirect)

    def post(attempt: int) -> None:
        try:
            request = urllib.request.Request(url, body, headers, method="POST")
            with opener.open(request, timeout=_TIMEOUT_S):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _RETRIED:
                raise TransientError(f"{name} answered {error.code} in {attempt} attempts.") from error
            raise SpecError(f"{name} answered {error.code}: check guards.webhook.") from None
        except (OSError, http.client.HTTPException) as error:
            # The text of others may repeat the address.
            raise TransientError(f"{name} cannot be reached in {attempt} attempts ({_kind(error)}).") from None
        except ValueError:
            raise SpecError(f"guards.webhook: {name} is not a valid address.") from None

    policy.run(post)


def _kind(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return type(reason).__name__ if isinstance(reason, Exception) else "URLError"
