"""`python -m fer_utils.predict`."""

from fer_utils import entry
from fer_utils.predict.command_line import main

if __name__ == "__main__":
    entry.enter(main)
