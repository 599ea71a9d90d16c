"""`python -m novacron.agent`: run one node's agent."""

import sys

from novacron.agent.main import main

sys.exit(main())
