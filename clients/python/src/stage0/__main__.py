"""`python -m stage0 selftest`."""

from __future__ import annotations

import argparse
import sys

from ._selftest import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stage0")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    selftest = commands.add_parser("selftest", help="proves that a guarded function does not run without an ALLOW")
    selftest.add_argument("--timeout", type=float, default=1.0, help="seconds that the client waits (default: 1)")
    sys.exit(main(parser.parse_args().timeout))
