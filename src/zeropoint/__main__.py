"""`python -m zeropoint` is the `zeropoint` command."""

from zeropoint.cli.main import main

raise SystemExit(main())
