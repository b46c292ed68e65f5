"""`python -m ganbert.cli`."""

from ganbert.cli.application import main

main()
