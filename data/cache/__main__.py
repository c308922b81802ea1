"""`python -m data.cache`."""

import sys

from data.cache.store import main

sys.exit(main())
