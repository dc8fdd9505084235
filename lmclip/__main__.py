"""``python -m lmclip`` is the command ``lmclip``."""

import sys

from lmclip.cli import main

sys.exit(main())
