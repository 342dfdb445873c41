"""`python -m torpor.testing.standin`."""

import sys

from torpor.testing.standin.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
