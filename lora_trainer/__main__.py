"""`python -m lora_trainer`"""

import sys

from lora_trainer.interfaces.cli import main

if __name__ == "__main__":  # data-loading processes import this file again under another name
    sys.exit(main())
