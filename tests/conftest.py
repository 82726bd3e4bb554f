"""Before any test imports numpy: one thread for its libraries, as in every run."""

import os

from cluster.threads import ONE_THREAD

os.environ.update(ONE_THREAD)
