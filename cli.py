"""Run `python cli.py ...` in a checkout as `kvq-batch ...`."""

from kvq_batch.cli.app import app

if __name__ == "__main__":
    app()
