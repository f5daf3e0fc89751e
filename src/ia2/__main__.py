"""`python -m ia2` is the `ia2` command."""

from ia2.cli import main

main()
