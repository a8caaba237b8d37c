"""``python -m clients.cli``: the command line where its script is not installed."""

from clients.cli.main import main

main()
