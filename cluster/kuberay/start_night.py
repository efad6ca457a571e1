"""Starts tonight's RayJob, if last night's is over; runs in the CronJob of nightly.yaml, as its service account.

    NIGHT_HOURS=5 python start_night.py RAYJOB_YAML

The RayJob is the file's, with the end of the night as an absolute time: a run that is started again after its driver
died ends when the night does, and not five hours later. RayJobs that are over are deleted, the newest seven excepted.
This starts no pod itself and knows nothing of Ray: the operator does the rest.
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
    nights = sorted(ask("GET", f"?labelSelector={LABEL}")["items"], key=lambda night: night["metadata"]["name"])
    if at_work := [name(night) for night in nights if status(night) not in OVER]:
        sys.stderr.write(f"{', '.join(at_work)} is not over; tonight's is not started. kubectl get rayjobs says more\n")
        return 1
    now = datetime.now(UTC).replace(microsecond=0)
    end = now + timedelta(hours=float(os.environ["NIGHT_HOURS"]))
    tonight = yaml.safe_load(Path(rayjob_file).read_text(encoding="utf-8"))
    tonight["metadata"]["name"] += f"-{now:%Y%m%d-%H%M}"
    tonight["spec"]["entrypoint"] += f" --deadline {end.isoformat()}"
    ask("POST", "", tonight)
    sys.stderr.write(f"started {name(tonight)}, until {end.isoformat()}\n")
    for night in nights[: -NUM_KEPT + 1]:
        ask("DELETE", f"/{name(night)}")
    return 0


def name(night: dict[str, Any]) -> str:
    return str(night["metadata"]["name"])


def status(night: dict[str, Any]) -> str:
    return str(night.get("status", {}).get("jobDeploymentStatus", ""))


def ask(verb: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The API server's answer about the RayJobs of this namespace. Exits with its words where it refuses."""
    namespace = (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    request = urllib.request.Request(
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
        with urllib.request.urlopen(request, timeout=30, context=certificates) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as refusal:
        said = refusal.read().decode(errors="replace")[:500]
        raise SystemExit(f"{verb} rayjobs{path}: {refusal.code} {refusal.reason}: {said}") from refusal
    except urllib.error.URLError as silence:
        raise SystemExit(f"{verb} rayjobs{path}: no answer from {API}: {silence.reason}") from silence


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
