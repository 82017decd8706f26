"""``python -m gdml``: the command line."""

import sys

from gdml.cli import main

if __name__ == "__main__":
    sys.exit(main())
