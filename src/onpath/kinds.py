"""The variants that a config may name, by family: one line for each class, and what a run wires in itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn as nn

from onpath.data.hub_text import HubText
from onpath.data.huggingface import HuggingFaceTokenizer
from onpath.data.pairs import TextPairs
from onpath.data.source import Source, TextSource
from onpath.data.text import TextFile
from onpath.data.tokenizers import Bytes, Characters, Tokenizer
from onpath.data.trajectories import FourRoomsExpert, TrajectoryFile
from onpath.evaluation.plans import PlanEvaluation
from onpath.evaluation.settings import Evaluation
from onpath.evaluation.text import TextEvaluation
from onpath.models.from_transformers import CausalLM, MaskedLM, RemoteLM
from onpath.models.policy import PlanMLP, PlanTransformer
from onpath.models.transformer import TokenTransformer
from onpath.objectives.base import Objective
from onpath.objectives.masked_ce import MaskedCrossEntropy
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.objectives.penalties import MaskingPenalties
from onpath.ramps import Constant, CosineRamp, LinearRamp, Piecewise, Ramp
from onpath.sampling.counts import AncestralCount, Count, EntropyBound, Factor, ScheduleCount, Threshold
from onpath.sampling.grids import EvenGrid, ExplicitGrid, Grid, UniformGrid
from onpath.sampling.loop import Sampler
from onpath.sampling.remasking import ByConfidence, Cap, Loop, Proofread, Remask, Rescale
from onpath.sampling.unmasking import Unmasking
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
from onpath.training.optimizers import AdamW, Muon, OptimizerConfig
from onpath.training.trainer import Trainer

FAMILIES: dict[type, dict[str, type]] = {
    Schedule: {
        "linear": LinearSchedule,
        "cosine": CosineSchedule,
        "maskgit_cosine": MaskGITCosineSchedule,
        "half_cosine": HalfCosineSchedule,
        "polynomial": PolynomialSchedule,
        "exponential": ExponentialSchedule,
        "betas": BetasSchedule,
        "tabulated": TabulatedSchedule,
        "shifted": ShiftedSchedule,
    },
    Ramp: {"constant": Constant, "linear": LinearRamp, "cosine": CosineRamp, "piecewise": Piecewise},
    Source: {
        "fourrooms": FourRoomsExpert,
        "trajectories": TrajectoryFile,
        "text": TextFile,
        "hub_text": HubText,
        "pairs": TextPairs,
    },
    Tokenizer: {"characters": Characters, "bytes": Bytes, "huggingface": HuggingFaceTokenizer},
    nn.Module: {
        "plan_mlp": PlanMLP,
        "plan_transformer": PlanTransformer,
        "token_transformer": TokenTransformer,
        "masked_lm": MaskedLM,
        "causal_lm": CausalLM,
        "remote_lm": RemoteLM,
    },
    Objective: {
        "nelbo": ContinuousNELBO,
        "trajectory_nelbo": TrajectoryNELBO,
        "masked_cross_entropy": MaskedCrossEntropy,
        "masking_penalties": MaskingPenalties,
    },
    Sampler: {"unmasking": Unmasking},
    Count: {
        "schedule": ScheduleCount,
        "ancestral": AncestralCount,
        "threshold": Threshold,
        "factor": Factor,
        "entropy_bound": EntropyBound,
    },
    Remask: {
        "cap": Cap,
        "rescale": Rescale,
        "confidence": ByConfidence,
        "loop": Loop,
        "proofread": Proofread,
    },
    Grid: {"uniform": UniformGrid, "even": EvenGrid, "explicit": ExplicitGrid},
    OptimizerConfig: {"adamw": AdamW, "muon": Muon},
    Evaluation: {"plans": PlanEvaluation, "text": TextEvaluation},
}

WIRED: dict[type, frozenset[str]] = {
    Source: frozenset({"seed", "split"}),
    nn.Module: frozenset({"spec"}),
    Objective: frozenset({"process", "grid", "fixed_counts", "num_words"}),
    Sampler: frozenset({"end_id"}),
}
"""Constructor parameters that the run fills in and no config sets, by family: one schedule, process, grid and seed for
all its parts, the split by what it does, and whether the sampler's counts are fixed, which its bound must know."""


def wired_into(cls: type) -> frozenset[str]:
    """The parameters of a class that the run fills in."""
    return next((names for family, names in WIRED.items() if issubclass(cls, family)), frozenset())


def evaluation_of(source: type) -> type[Evaluation]:
    """What is measured of a run on such a source, unless its config says otherwise."""
    return TextEvaluation if issubclass(source, TextSource) else PlanEvaluation


@dataclass(frozen=True)
class RunSections:
    """The sections of a config.

    seed: of weights, examples and every other draw. device: auto takes a GPU where there is one. data: where examples
    come from. schedule: the one schedule of the run. model, objective: what is trained, and for what. sampler, grid:
    how it generates. training: how it is trained. evaluation: on what and how it is measured.
    """

    data: Source
    model: nn.Module
    objective: Objective
    training: Trainer
    schedule: Schedule = LinearSchedule()
    sampler: Sampler = Unmasking()
    grid: Grid = EvenGrid(10)
    evaluation: Evaluation = PlanEvaluation()
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
