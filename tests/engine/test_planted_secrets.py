"""No planted secret is in any file below the tables, in any log, or in the logs of Ray, after runs as processes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import kvq_batch
from kvq_batch.tables.delta import Tables
from tests.support.http_server import HttpServer
from tests.support.secrets_search import find_secrets

ROOT = Path(__file__).parents[2]
USER = "planted-user-info-0123456789"
SIGNATURE = "planted-signature-0123456789"
IN_ID = "planted-in-id-0123456789"
IN_COLUMN = "planted-in-column-0123456789"
IN_ENVIRONMENT = "planted/in+environment=0123456789"
KEY_ID = "AKIAPLANTEDKEYID2345"
SECRETS = (USER, SIGNATURE, IN_ID, IN_COLUMN, IN_ENVIRONMENT, KEY_ID)

NIGHTS = (
    (["plan", "job.toml"], ["run", "job.toml", "--log", "json", "--executor", "ray"]),
    (["run", "job.toml", "--executor", "local"], ["failures", "list", "tables"]),
)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    # Ray has sockets there, whose paths are limited to 107 characters: folders of tests are too deep.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


def write_catalog(folder: Path, http_server: HttpServer, names: Sequence[str], night: int) -> None:
    """Write a catalog with secrets in every column, and signatures of this night."""
    private = http_server.address.replace("://", f"://me:{USER}@")
    uris = [f"{private}/{name}?X-Amz-Date={night}&X-Amz-Signature={SIGNATURE}{night}" for name in names]
    # One that fails, with the address in the messages of the store, and one that has a secret of the environment.
    uris += [f"{private}/gone.mp4?sig={SIGNATURE}{night}&se={night}", f"{private}/{IN_ENVIRONMENT}/{KEY_ID}.mp4"]
    # Refused at once, with the address in the message of the client, and a store that is not installed.
    uris += [f"http://me:{USER}@127.0.0.1:1/a.mp4?token={SIGNATURE}{night}", f"gs://me:{USER}@b/a.mp4"]
    rows = [
        {
            "video_id": f"https://ids/{number}?token={IN_ID}{night}",
            "uri": uri,
            "title": f"Film {number}, see https://me:{IN_COLUMN}@host/{number}",
            "thumbnail": f"https://cdn/{number}.jpg?Expires={night}&Signature={IN_COLUMN}{night}",
            "notes": [{"headers": [f"Authorization: Bearer {IN_COLUMN}"]}, {"headers": [f"x {IN_ENVIRONMENT} x"]}],
            "owner": f"password={IN_COLUMN}",
        }
        for number, uri in enumerate(uris)
    ]
    (folder / "catalog.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_no_secret_is_stored_or_logged(videos: Path, tmp_path: Path, ray_folder: Path, http_server: HttpServer) -> None:
    names = [path.name for path in sorted(videos.iterdir())][:2]
    http_server.files.update({name: (videos / name).read_bytes() for name in names})
    (tmp_path / "job.toml").write_text(
        f'name = "j"\ntables = "tables"\n[catalog]\nsource = "catalog.jsonl"\nwhere = "owner <> \'{KEY_ID}\'"\n'
        '[[models]]\nname = "luma-sharpness"\nworkers = { num_cpus = 0.5 }\n'
        "[decode]\nworkers = { num_cpus = 0.5 }\n[run]\nmax_attempts = 2\n"
    )
    logs = tmp_path / "logs"
    logs.mkdir()
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": IN_ENVIRONMENT, "STUDIO_API_TOKEN": IN_ENVIRONMENT,
        "RAY_TMPDIR": str(ray_folder),
    }  # fmt: skip
    for night, commands in enumerate(NIGHTS):
        write_catalog(tmp_path, http_server, names, night)
        for number, arguments in enumerate(commands):
            done = subprocess.run(
                [sys.executable, str(ROOT / "cli.py"), *arguments],
                cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode in (0, 3), done.stderr
            (logs / f"{night}-{number}.txt").write_text(done.stdout + done.stderr)
    with kvq_batch.open(str(tmp_path / "tables")) as tables:
        scored = tables.sql("SELECT video_id, uri FROM scores ORDER BY 1").to_pylist()
        failed = tables.sql("SELECT DISTINCT video_id, error FROM failures WHERE final ORDER BY 1").to_pylist()
    assert [row["video_id"] for row in scored] == ["https://ids/0", "https://ids/1"]
    assert [row["uri"] for row in scored] == [f"{http_server.address}/{name}" for name in names]
    # The second night has other signatures, and nothing else.
    assert Tables.open(str(tmp_path / "tables")).dataset("catalog").count_rows() == 6
    assert [row["error"] for row in failed] == ["missing", "missing", "unreachable", "bad_address"]
    assert any(path.name.startswith("raylet") for path in ray_folder.rglob("*")), "the logs of Ray are elsewhere"
    # Ray's store of objects has the addresses while a run needs them.
    for folder in (tmp_path / "tables", logs, ray_folder):
        assert find_secrets(folder, SECRETS) == []
