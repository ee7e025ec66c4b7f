"""`python run.py --flagfile=mnist.flags`: the command line of `trainer`, from a checkout."""

import sys

from trainer.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
