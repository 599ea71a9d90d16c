"""`python -m novacron.control` runs the control plane."""

import sys

from novacron.control.main import main

sys.exit(main())
