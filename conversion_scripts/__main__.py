# SPDX-License-Identifier: Apache-2.0
"""Runs `python -m conversion_scripts`, which is `dino convert`."""

import sys

from modeling_dino.cli import main


if __name__ == "__main__":
    sys.argv[1:1] = ["convert"]
    main()
