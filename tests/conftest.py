"""Every annotation of the package is checked while the tests run, on one thread."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its pool

from jaxtyping import install_import_hook

# Shapes and types in signatures become assertions. It must stand before the first import of the package.
install_import_hook("onpath", "typechecker.check")

import torch  # noqa: E402 (see above)

torch.set_num_threads(1)
