"""`python -m qqbot_session.testing`: run a gateway by hand."""

import sys

from .gateway import main

if __name__ == "__main__":
    sys.exit(main())
