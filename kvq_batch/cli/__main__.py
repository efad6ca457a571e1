"""`python -m kvq_batch.cli ...` is `kvq-batch ...`, also where the package lies uninstalled. Defines nothing."""

from kvq_batch.cli.app import app

if __name__ == "__main__":
    app()
