"""Start tonight's RayJob if last night's is over; runs in the CronJob of nightly.yaml, with its service account.

    NIGHT_HOURS=5 python start_night.py RAYJOB_YAML

The RayJob is the one of the file, with the end of the night as an absolute time: a run that is restarted after a crash
ends when the night does, not five hours later. RayJobs that are over are deleted, except for the newest seven. The
KubeRay operator creates the pods.
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

LABEL = "app.kubernetes.io/name=kvq-night"
OVER = ("Complete", "Failed")
NUM_KEPT = 7
ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("KUBERNETES_API", "https://kubernetes.default.svc")


def main(rayjob_file: str) -> int:
    nights = sorted(request_api("GET", f"?labelSelector={LABEL}")["items"], key=lambda night: night["metadata"]["name"])
    if active := [name(night) for night in nights if status(night) not in OVER]:
        sys.stderr.write(f"Did not start tonight's run: {', '.join(active)} is not over. See: kubectl get rayjobs\n")
        return 1
    now = datetime.now(UTC).replace(microsecond=0)
    end = now + timedelta(hours=float(os.environ["NIGHT_HOURS"]))
    tonight = yaml.safe_load(Path(rayjob_file).read_text(encoding="utf-8"))
    tonight["metadata"]["name"] += f"-{now:%Y%m%d-%H%M}"
    tonight["spec"]["entrypoint"] += f" --deadline {end.isoformat()}"
    request_api("POST", "", tonight)
    sys.stderr.write(f"Started {name(tonight)}, until {end.isoformat()}\n")
    for night in nights[: -NUM_KEPT + 1]:
        request_api("DELETE", f"/{name(night)}")
    return 0


def name(night: dict[str, Any]) -> str:
    return str(night["metadata"]["name"])


def status(night: dict[str, Any]) -> str:
    return str(night.get("status", {}).get("jobDeploymentStatus", ""))


def request_api(verb: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send a request about the RayJobs of this namespace. Exit with the server's message if it is rejected."""
    namespace = (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    api_request = urllib.request.Request(
        f"{API}/apis/ray.io/v1/namespaces/{namespace}/rayjobs{path}",
        None if body is None else json.dumps(body).encode(),
        {
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text(encoding='utf-8').strip()}",
            "Content-Type": "application/json",
        },
        method=verb,
    )
    certificates = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")) if API.startswith("https:") else None
    try:
        with urllib.request.urlopen(api_request, timeout=30, context=certificates) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")[:500]
        raise SystemExit(f"{verb} rayjobs{path}: {error.code} {error.reason}: {text}") from error
    except urllib.error.URLError as error:
        raise SystemExit(f"{verb} rayjobs{path}: no answer from {API}: {error.reason}") from error


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
