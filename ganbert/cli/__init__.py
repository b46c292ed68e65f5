"""The `ganbert` command: a thin layer of options over the verbs, without logic of its own.

Every command imports what it runs inside its body, so that `ganbert --help` answers at once.
"""

from ganbert.cli.application import app, main

__all__ = ["app", "main"]
