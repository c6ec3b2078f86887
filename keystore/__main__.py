"""``python -m keystore`` is the command ``keystore``."""

from keystore.cli import main

main()
