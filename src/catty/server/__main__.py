"""`python -m catty.server --data DIR …`: see `catty.server.settings`."""

import sys

from catty.server.main import main

sys.exit(main(sys.argv[1:]))
