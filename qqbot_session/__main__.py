"""`python -m qqbot_session`: the operator's commands."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
