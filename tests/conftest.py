"""Every annotation of the package is checked while the tests run, on one thread."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its pool

from collections.abc import Iterator

import jaxtyping
import pytest

# Shapes and types in signatures become assertions. It must stand before the first import of the package.
jaxtyping.install_import_hook("onpath", "typechecker.check")

import torch  # noqa: E402 (see above)

torch.set_num_threads(1)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not checked, as for a user: the function's own error for a wrong value is then seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Code from model folders is copied to a place of the tests before it runs; a process can have one such place."""
    import transformers

    transformers.dynamic_module_utils.HF_MODULES_CACHE = str(tmp_path_factory.mktemp("code"))
