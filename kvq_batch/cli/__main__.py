"""Run `python -m kvq_batch.cli ...` as `kvq-batch ...`, also without installing the package."""

from kvq_batch.cli.app import app

if __name__ == "__main__":
    app()
