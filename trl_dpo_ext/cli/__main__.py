"""`python -m trl_dpo_ext.cli`, for `accelerate launch -m`."""

import sys

from trl_dpo_ext.cli import main


if __name__ == "__main__":
    sys.exit(main())
