"""What turns the annotations of the package into checks while the tests run."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# An int is accepted where a float is asked for, as in PEP 484 and by the type checker of `make check`.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
