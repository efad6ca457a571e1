"""Launcher of the command line for a checkout: `python cli.py ...` is `kvq-batch ...`."""

from kvq_batch.cli.app import app

if __name__ == "__main__":
    app()
