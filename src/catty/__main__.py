"""`python -m catty` is `catty`."""

from __future__ import annotations

from catty.cli.main import main

raise SystemExit(main())
