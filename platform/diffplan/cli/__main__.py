"""`python -m diffplan.cli`."""

import sys

from diffplan.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
