"""`python -m vla_crl`: the command line where no script was installed."""

import sys

from vla_crl.cli.main import main

sys.exit(main())
