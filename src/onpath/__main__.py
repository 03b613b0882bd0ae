"""``python -m onpath``, which torchrun needs: ``torchrun --nproc-per-node 2 -m -- onpath train …``."""

from onpath.cli import main

if __name__ == "__main__":
    main()
