# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python3 -m ooodd`."""

import sys

from ooodd.cli import main

sys.exit(main())
