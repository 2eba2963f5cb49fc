"""`python -m aheadless` is the command `aheadless`."""

import sys

from aheadless.cli import main

sys.exit(main())
