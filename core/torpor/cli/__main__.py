"""`python -m torpor.cli`: the command `torpor` without its script."""

from torpor.cli import main

if __name__ == "__main__":
    main()
