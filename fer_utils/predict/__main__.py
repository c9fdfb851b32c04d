"""`python -m fer_utils.predict`."""

import sys

from fer_utils.predict.command_line import main

if __name__ == "__main__":
    sys.exit(main())
