"""The variants that a config may name, by family: one line for each class, and what a run wires in itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn as nn

from onpath.data.countdown import CountdownPuzzles
from onpath.data.hub_text import HubText
from onpath.data.huggingface import HuggingFaceTokenizer
from onpath.data.image_folder import ImageFolder
from onpath.data.image_hub import HubImages
from onpath.data.image_sets import MNIST, Cifar10, FashionMNIST
from onpath.data.images import Digits
from onpath.data.latents import Latents
from onpath.data.mazes import MazeExpert
from onpath.data.pairs import TextPairs
from onpath.data.prompt_sets import Prompts
from onpath.data.source import ImageSource, Source, TextSource
from onpath.data.sudoku import Sudoku
from onpath.data.text import TextFile
from onpath.data.tokenizers import Bytes, Characters, Tokenizer
from onpath.data.trajectories import FourRoomsExpert, TrajectoryFile
from onpath.evaluation.images import ImageEvaluation
from onpath.evaluation.plans import PlanEvaluation
from onpath.evaluation.rewards import RewardEvaluation
from onpath.evaluation.settings import Evaluation
from onpath.evaluation.text import TextEvaluation
from onpath.experience.settings import GroupRollouts
from onpath.models.diffusers_schedules import sections
from onpath.models.from_diffusers import Diffusers
from onpath.models.from_transformers import CausalLM, MaskedLM, RemoteLM
from onpath.models.policy import PlanMLP, PlanTransformer
from onpath.models.transformer import TokenTransformer
from onpath.models.unet import ImageUNet
from onpath.objectives.base import Objective
from onpath.objectives.denoising import Denoising
from onpath.objectives.estimators import Estimator
from onpath.objectives.mask_estimators import Coupled, OneStep, Sandwiched, SequenceELBO, UniformTime, Weighted
from onpath.objectives.masked_ce import MaskedCrossEntropy
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.objectives.penalties import MaskingPenalties
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.objectives.trajectory_estimators import TraceEstimator, Trajectory, TrajectoryNELBOEstimator
from onpath.objectives.weighting import (
    LogitNormalTimes,
    LossWeight,
    MinSNR,
    ShiftedTimes,
    TimeDensity,
    UniformTimes,
    Unweighted,
)
from onpath.processes.base import Process
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking
from onpath.ramps import Constant, CosineRamp, LinearRamp, Piecewise, Ramp
from onpath.rewards.base import FunctionReward, Reward
from onpath.rewards.countdown import Countdown
from onpath.rewards.gsm8k import GSM8KCorrect, IntegerAnswer, SoftFormat, StrictFormat
from onpath.rewards.maths import Math
from onpath.rewards.plans import PlanProgress, PlanSuccess
from onpath.rewards.sudoku import SudokuCells, SudokuSolved
from onpath.sampling.counts import AncestralCount, Count, EntropyBound, Factor, ScheduleCount, Threshold
from onpath.sampling.grids import EvenGrid, ExplicitGrid, Grid, UniformGrid
from onpath.sampling.loop import Sampler
from onpath.sampling.remasking import ByConfidence, Cap, Loop, Proofread, Remask, Rescale
from onpath.sampling.solvers import DPMSolver, Euler, RungeKutta, UniPC
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
from onpath.search.base import Search
from onpath.search.baselines import MCTS, Beam, BestOfN, Greedy
from onpath.search.baselines import Remask as RemaskSearch
from onpath.search.evaluators import Evaluator, Exact, FunctionEvaluator, Likelihood
from onpath.search.mctd import MCTD
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
        "mazes": MazeExpert,
        "text": TextFile,
        "hub_text": HubText,
        "pairs": TextPairs,
        "prompts": Prompts,
        "sudoku": Sudoku,
        "countdown": CountdownPuzzles,
        "digits": Digits,
        "mnist": MNIST,
        "fashion_mnist": FashionMNIST,
        "cifar10": Cifar10,
        "image_folder": ImageFolder,
        "hub_images": HubImages,
        "latents": Latents,
    },
    Tokenizer: {"characters": Characters, "bytes": Bytes, "huggingface": HuggingFaceTokenizer},
    nn.Module: {
        "plan_mlp": PlanMLP,
        "plan_transformer": PlanTransformer,
        "token_transformer": TokenTransformer,
        "masked_lm": MaskedLM,
        "causal_lm": CausalLM,
        "remote_lm": RemoteLM,
        "diffusers": Diffusers,
        "image_unet": ImageUNet,
    },
    Objective: {
        "denoising": Denoising,
        "nelbo": ContinuousNELBO,
        "trajectory_nelbo": TrajectoryNELBO,
        "masked_cross_entropy": MaskedCrossEntropy,
        "masking_penalties": MaskingPenalties,
        "policy_gradient": PolicyGradient,
    },
    Estimator: {
        "traj": Trajectory,
        "traj_nelbo": TrajectoryNELBOEstimator,
        "trace": TraceEstimator,
        "diffu": OneStep,
        "uni": UniformTime,
        "coupled": Coupled,
        "espo": SequenceELBO,
        "spg": Sandwiched,
        "wd1": Weighted,
    },
    Process: {"masking": Masking, "gaussian": Gaussian},
    Sampler: {"unmasking": Unmasking, "euler": Euler, "dpm": DPMSolver, "unipc": UniPC, "rk4": RungeKutta},
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
    TimeDensity: {"uniform": UniformTimes, "logit_normal": LogitNormalTimes, "shifted": ShiftedTimes},
    LossWeight: {"none": Unweighted, "min_snr": MinSNR},
    OptimizerConfig: {"adamw": AdamW, "muon": Muon},
    Reward: {
        "function": FunctionReward,
        "gsm8k_correct": GSM8KCorrect,
        "strict_format": StrictFormat,
        "soft_format": SoftFormat,
        "integer_answer": IntegerAnswer,
        "math": Math,
        "countdown": Countdown,
        "sudoku_solved": SudokuSolved,
        "sudoku_cells": SudokuCells,
        "plan_success": PlanSuccess,
        "plan_progress": PlanProgress,
    },
    Evaluation: {
        "plans": PlanEvaluation,
        "text": TextEvaluation,
        "rewards": RewardEvaluation,
        "images": ImageEvaluation,
    },
    Search: {
        "mctd": MCTD,
        "mcts": MCTS,
        "beam": Beam,
        "remask": RemaskSearch,
        "best_of_n": BestOfN,
        "greedy": Greedy,
    },
    Evaluator: {"exact": Exact, "likelihood": Likelihood, "function": FunctionEvaluator},
}

WIRED: dict[type, frozenset[str]] = {
    Source: frozenset({"seed", "split"}),
    nn.Module: frozenset({"spec", "process"}),
    Process: frozenset({"schedule", "mask_id"}),
    Objective: frozenset({"process", "grid", "sampler", "fixed_counts", "num_words"}),
    Sampler: frozenset({"end_id"}),
}
"""Constructor parameters that the run fills in and no config sets, by family: one schedule, process, grid and seed for
all its parts, the split by what it does, and whether the sampler's counts are fixed, which its bound must know."""


JUDGES: dict[type[Source], tuple[str, ...]] = {
    Sudoku: ("sudoku_solved", "sudoku_cells"),
    CountdownPuzzles: ("countdown",),
}
"""The rewards that tell whether an answer to these data is right."""


def wired_into(cls: type) -> frozenset[str]:
    """The parameters of a class that the run fills in."""
    return next((names for family, names in WIRED.items() if issubclass(cls, family)), frozenset())


def kinds_beside(cls: type) -> dict[str, type]:
    """The kinds of the family that a class is of."""
    return next((kinds for family, kinds in FAMILIES.items() if issubclass(cls, family)), {})


def defaults_of(source: type, experience: Any = None) -> dict[str, dict[str, Any]]:
    """The sections that follow the data: their kind and fields on such a source, unless a config says otherwise.

    experience: that section as the config has it; where it names rewards to train on, they judge answers as well.
    """
    if issubclass(source, ImageSource):
        return {
            "process": {"kind": "gaussian"},
            "sampler": {"kind": "dpm"},
            "grid": {"kind": "uniform", "steps": 20},
            "evaluation": {"kind": "images"},
        }
    if not issubclass(source, TextSource):
        return {"evaluation": {"kind": "plans"}}
    named = experience.get("rewards") if isinstance(experience, Mapping) else None
    judged = next((list(names) for data, names in JUDGES.items() if issubclass(source, data)), named)
    return {"evaluation": {"kind": "rewards", "rewards": judged} if judged else {"kind": "text"}}


def following(source: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """These sections with what the config `data` says put over them, but for those of which it names another kind."""
    found = {}
    for name, default in defaults_of(source, data.get("experience")).items():
        given = data.get(name, {})
        named = {"kind": given} if isinstance(given, str) else given
        isolated = not isinstance(named, Mapping) or "class" in named
        if not isolated and named.get("kind", default["kind"]) == default["kind"]:
            found[name] = {**default, **named}
    return found


def brought_by(model: type, fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that a trained model brings with it, `given` being those of the config; most bring none.

    ValueError where they contradict what it was trained with.
    """
    if not issubclass(model, Diffusers):
        return {}
    return sections(fields["path"], fields["weights"] != "random", given)


@dataclass(frozen=True)
class RunSections:
    """The sections of a config.

    seed: of weights, examples and every other draw. device: auto takes a GPU where there is one. data: where examples
    come from. schedule: the one schedule of the run. process: how it spoils data. model, objective: what is trained,
    and for what. sampler, grid: how it generates. training: how it is trained. evaluation: on what and how it is
    measured.
    """

    data: Source
    model: nn.Module
    objective: Objective
    training: Trainer
    schedule: Schedule = LinearSchedule()
    process: Process = Masking(LinearSchedule(), 0)
    sampler: Sampler = Unmasking()
    grid: Grid = EvenGrid(10)
    evaluation: Evaluation = PlanEvaluation()
    experience: GroupRollouts | None = None
    start: str | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
