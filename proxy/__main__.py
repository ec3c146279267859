"""``python -m proxy`` is ``specbreaker``."""

from proxy.cli import main

main()
