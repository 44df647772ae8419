"""`python -m dfqlab.cli`."""

import sys

from dfqlab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
