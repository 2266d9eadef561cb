"""`python -m velm`, which torchrun and srun start: the same as `velm`."""

import sys

from velm.cli import main

if __name__ == "__main__":
    sys.exit(main())
