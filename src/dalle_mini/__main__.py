"""`python -m dalle_mini` is the command `dalle-mini`."""

import sys

from dalle_mini.cli import main

sys.exit(main())
