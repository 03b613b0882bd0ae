"""The contract tables: every component of the package in the variants that must keep the promises.

A new public class of a noun is one more line here; ``test_contracts.py`` fails while it is missing.
"""

from __future__ import annotations

from onpath.ramps import Constant, CosineRamp, LinearRamp, Piecewise, Ramp
from onpath.schedules import (
    BetasSchedule,
    CosineSchedule,
    ExponentialSchedule,
    HalfCosineSchedule,
    LinearSchedule,
    MaskGITCosineSchedule,
    PolynomialSchedule,
    Schedule,
    ShiftedSchedule,
    TabulatedSchedule,
)

SCHEDULES: dict[str, Schedule] = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "maskgit": MaskGITCosineSchedule(),
    "half cosine": HalfCosineSchedule(),
    "polynomial 2": PolynomialSchedule(),
    "polynomial 0.5": PolynomialSchedule(power=0.5),
    "shifted linear": ShiftedSchedule(LinearSchedule(), 3.0),
    "shifted cosine": ShiftedSchedule(CosineSchedule(), 0.4),
    "linear .01 .99": LinearSchedule(alpha_min=0.01, alpha_max=0.99),
    "cosine .01 .99": CosineSchedule(alpha_min=0.01, alpha_max=0.99),
    "maskgit .05 .95": MaskGITCosineSchedule(alpha_min=0.05, alpha_max=0.95),
    "half cosine 0 .9": HalfCosineSchedule(alpha_max=0.9),
    "half cosine .2 1": HalfCosineSchedule(alpha_min=0.2),
    "polynomial 3 .1 .7": PolynomialSchedule(alpha_min=0.1, alpha_max=0.7, power=3.0),
    "exponential": ExponentialSchedule(),
    "exponential .01 .99": ExponentialSchedule(alpha_min=0.01, alpha_max=0.99),
    "betas linear": BetasSchedule(),
    "betas scaled linear": BetasSchedule("scaled_linear", 0.00085, 0.012),
    "tabulated": TabulatedSchedule((0.9, 0.8, 0.45, 0.2)),
    "shifted betas": ShiftedSchedule(BetasSchedule(), 2.0),
}

RAMPS: dict[str, Ramp] = {
    "constant": Constant(0.5),
    "linear": LinearRamp(1.0, 0.25, 1000),
    "linear later": LinearRamp(0.0, 0.5, 10, start_step=5),
    "cosine": CosineRamp(0.0, 1.0, 20),
    "piecewise": Piecewise(knots=((0, 0.0), (10, 1.0), (20, 0.5))),
}
