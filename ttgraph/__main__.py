"""``python -m ttgraph``."""

import sys

from ttgraph.cli import main

sys.exit(main())
