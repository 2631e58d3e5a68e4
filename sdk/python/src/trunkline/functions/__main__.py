"""`python -m trunkline.functions`, where the script `trunkline-functions` is not on the path."""

import sys

from trunkline.functions.cli import main

sys.exit(main())
