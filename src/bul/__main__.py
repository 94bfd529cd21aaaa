"""`python -m bul` is `bul`."""

import sys

from bul.cli.main import main

sys.exit(main())
