"""`python -m gift.cli`: the `gift` command of this Python, where the script of that name is another's or is moved."""

from gift.cli import main

main(prog_name="gift")
