"""Commands that answer questions about stored results, one module a command."""
