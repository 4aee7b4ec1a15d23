"""`python -m tesseral` is the command `tesseral`."""

import sys

from .scripts.main import main

sys.exit(main())
