"""`python -m moekd`, which launchers of several processes need."""

import sys

from moekd.cli import main

sys.exit(main())
