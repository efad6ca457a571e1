"""The command `serve`: a local web page over the tables."""

import logging
import socket
import webbrowser
from contextlib import suppress
from typing import Annotated

import typer

from kvq_batch.cli.options import EndpointOption, RegionOption, TablesArgument
from kvq_batch.domain.errors import SpecError

HOST = "127.0.0.1"
PORT = 8765

_logger = logging.getLogger(__name__)


def serve(
    tables: TablesArgument,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0: any free one.")] = PORT,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    memory_limit: Annotated[
        str, typer.Option("--memory-limit", metavar="SIZE", help="Memory of the pages, and again of the SQL box.")
    ] = "4GB",
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Browse videos, maps and scores on a local web page.

    The page shows the tables as they grow, and changes nothing. It answers on
    127.0.0.1 only: users of this machine can open it, other machines cannot.
    From another machine, use a tunnel: `ssh -L 8765:127.0.0.1:8765 HOST`.
    Ctrl-C stops it.

    Examples:

      $ kvq-batch serve quality/ --browser
      $ kvq-batch serve s3://bucket/quality --port 9000
    """
    import uvicorn

    from kvq_batch.serve.pages import create_app
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.storage.redact import redact

    with listen(port) as listener:
        app = create_app(tables, StorageOptions(endpoint_url, region), memory_limit)
        url = f"http://{HOST}:{listener.getsockname()[1]}/"
        _logger.info("%s is shown at %s (Ctrl-C stops it)", redact(tables), url)
        if browser:
            webbrowser.open(url)
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off")
        # uvicorn ends its requests first, then passes Ctrl-C on.
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run([listener])


def listen(port: int) -> socket.socket:
    """Return a listening socket. Raises: SpecError if the port is in use or not allowed."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise SpecError(f"Cannot listen on {HOST}:{port}: {error.strerror}. Choose another --port.") from error
    listener.listen(128)
    return listener
