"""The contract tables: every component of the package in the variants that must keep the promises.

A new public class of a noun is one more line here; ``test_contracts.py`` fails while it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
from onpath.data.source import Source
from onpath.data.sudoku import Sudoku
from onpath.data.text import TextFile
from onpath.data.tokenizers import Bytes, Characters, Tokenizer
from onpath.data.trajectories import FourRoomsExpert, TrajectoryFile
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
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import AncestralCount, Count, EntropyBound, Factor, ScheduleCount, Threshold
from onpath.sampling.grids import EvenGrid, ExplicitGrid, Grid, UniformGrid
from onpath.sampling.loop import Sampler
from onpath.sampling.remasking import ByConfidence, Cap, Loop, Proofread, Remask, Rescale
from onpath.sampling.solvers import DPMSolver, Euler, ODESolver, RungeKutta, UniPC
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.scheduled_sampling import ReflexFlow, ScheduledSampling
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
from onpath.types import ImageSpec, Spec
from texts import WORDS

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

GRIDS: dict[str, Grid] = {
    "uniform": UniformGrid(5),
    "even": EvenGrid(5),
    "explicit": ExplicitGrid((1.0, 0.75, 0.2, 0.0)),
}

COUNTS: dict[str, Count] = {
    "schedule": ScheduleCount(),
    "ancestral": AncestralCount(),
    "threshold": Threshold(0.6),
    "factor": Factor(1.5),
    "entropy bound": EntropyBound(1.0),
}

TOKENS: dict[str, Categorical] = {
    "greedy": Categorical(temperature=0.0),
    "plain": Categorical(),
    "hot top k": Categorical(temperature=1.5, top_k=3),
    "nucleus": Categorical(temperature=0.8, top_p=0.9),
}

REMASKS: dict[str, Remask] = {
    "cap": Cap(0.2),
    "rescale": Rescale(0.3),
    "confidence": ByConfidence(),
    "loop": Loop(alpha=0.7, hold=0.2),
    "proofread": Proofread(0.3),
}

ORDERS = ("random", "confidence", "margin", "entropy", "left_to_right")


def samplers() -> dict[str, Unmasking]:
    """Every order with every count and every choice of token that go together."""
    table = {}
    for order in ORDERS:
        for count_name, count in COUNTS.items():
            if count_name == "ancestral" and order != "random":
                continue
            for token_name, tokens in TOKENS.items():
                table[f"{order}, {count_name}, {token_name}"] = Unmasking(order=order, count=count, tokens=tokens)
    table["gumbel confidence"] = Unmasking(order="confidence", order_noise=2.0)
    table["gumbel entropy, threshold"] = Unmasking(order="entropy", order_noise=1.0, count=Threshold(0.6))
    for name, count in COUNTS.items():
        table[f"blocks, {name}"] = Unmasking(count=count, blocks=Blocks(2))
    for name, rule in REMASKS.items():
        if name != "proofread":
            table[f"{name}, schedule"] = Unmasking(remask=rule)
            table[f"{name}, ancestral"] = Unmasking(count=AncestralCount(), remask=rule)
    table["cap, confidence, blocks"] = Unmasking(order="confidence", remask=Cap(0.2), blocks=Blocks(3))
    table["rescale, ancestral, blocks"] = Unmasking(count=AncestralCount(), remask=Rescale(0.3), blocks=Blocks(3))
    return table


SAMPLERS: dict[str, Sampler] = samplers()


SOLVERS: dict[str, ODESolver] = {
    "euler": Euler(),
    "euler, guided": Euler(guidance=0.5),
    "euler, scaled and clipped": Euler(epsilon_scale=1.005, clip=1.0),
    "dpm 1": DPMSolver(order=1),
    "dpm": DPMSolver(),
    "unipc 1": UniPC(order=1),
    "unipc": UniPC(),
    "unipc 3": UniPC(order=3),
    "rk4": RungeKutta(),
}

PROCESSES: dict[str, Callable[[Schedule, int], Process]] = {
    "masking": Masking,
    "flow": lambda schedule, _: Gaussian(schedule),
    "vp": lambda schedule, _: Gaussian(schedule, path="vp", prediction="v"),
}

TIME_DENSITIES: dict[str, TimeDensity] = {
    "uniform": UniformTimes(),
    "logit normal": LogitNormalTimes(0.5, 1.2),
    "shifted": ShiftedTimes(3.0),
}

LOSS_WEIGHTS: dict[str, LossWeight] = {"none": Unweighted(), "min snr": MinSNR(5.0)}

# objectives of images by name, made from a flow with images of any kind
IMAGE_OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "denoising": Denoising,
    "denoising, weighed": partial(Denoising, time_density=LogitNormalTimes(), weight=MinSNR()),
    "denoising, perturbed": partial(Denoising, input_perturbation=0.1),
    **{
        f"denoising, {name}": partial(Denoising, scheduled_sampling=ScheduledSampling(probability=0.5, **rule))
        for name, rule in {
            "rollout": {"max_step_offset": 10},
            "rollout, original": {"max_step_offset": 10, "target": "original", "sampler": "euler"},
            "inject": {"max_step_offset": 10, "mode": "inject"},
            "reflexflow": {"max_step_offset": 5, "reflexflow": ReflexFlow()},
            "reflexflow, jump": {"max_step_offset": 5, "reflexflow": ReflexFlow(mode="jump")},
        }.items()
    },
}

# objectives by name, made from a masking process whose schedule has the ends 1 and 0
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "continuous nelbo, pairs": partial(ContinuousNELBO, masks="pairs"),
    "continuous nelbo, counts": partial(ContinuousNELBO, masks="counts"),
    "continuous nelbo, bernoulli": partial(ContinuousNELBO, masks="bernoulli"),
    "trajectory nelbo": partial(TrajectoryNELBO, grid=UniformGrid(6), steps_per_example=2),
    "trajectory nelbo, all steps": partial(TrajectoryNELBO, grid=UniformGrid(3), steps_per_example=0),
    "trajectory nelbo, counts": partial(TrajectoryNELBO, grid=EvenGrid(4), steps_per_example=2, fixed_counts=True),
    "masked cross-entropy": MaskedCrossEntropy,
    "masking penalties": partial(MaskingPenalties, num_words=5),
    "masking penalties, smooth": partial(MaskingPenalties, num_words=5, weights="smooth", floor=0.1),
    "masked cross-entropy, coins": partial(MaskedCrossEntropy, exact=False, low=LinearRamp(0.2, 0.0, 10)),
}

# objectives of rollouts with rewards by name, and what they read of a rollout
POLICIES: dict[str, Callable[..., Objective]] = {
    "policy gradient": PolicyGradient,
    "policy gradient, path KL": partial(PolicyGradient, estimator=Trajectory(), beta=0.1),
    "policy gradient, k3": partial(PolicyGradient, beta=0.1, kl="k3", epsilon_high=0.3),
}
ESTIMATORS: dict[str, Estimator] = {
    "traj": Trajectory(),
    "traj, one step": Trajectory(trajectory_samples=1),
    "traj_nelbo": TrajectoryNELBOEstimator(trajectory_samples=0),
    "traj_nelbo, sequence": TrajectoryNELBOEstimator(trajectory_samples=1, level="sequence", p_mask_prompt=0.3),
    "diffu": OneStep(p_mask_prompt=0.3),
    "diffu, by chance": OneStep(masking="probability", p_mask=0.5),
    "uni": UniformTime(),
    "coupled": Coupled(),
    "coupled, reference": Coupled(weights="reference"),
    "espo": SequenceELBO(),
    "trace": TraceEstimator(merge=2),
    "spg": Sandwiched(),
    "wd1": Weighted(),
}

# sources by name; a file is written under its path by the tests that read it
SOURCES: dict[str, Source] = {
    "expert": FourRoomsExpert(),
    "expert, uniform ties": FourRoomsExpert(ties="uniform", num_actions=7, suffixes=False),
    "expert, shared goals": FourRoomsExpert(starts_per_goal=2),
    "expert, episodes": FourRoomsExpert(episodes=50, rotate=True),
    "expert, episodes, shared goals": FourRoomsExpert(episodes=50, starts_per_goal=2),
    "expert, padded": FourRoomsExpert(padding="zero", length=30),
    "mazes": MazeExpert(),
    "mazes, perfect, shared goals": MazeExpert(side=9, braid=0.0, length=12, starts_per_goal=2),
    "mazes, episodes": MazeExpert(side=7, ties="uniform", suffixes=False, episodes=50, rotate=True, reflect=True),
    "file": TrajectoryFile("plans.npz", validation_share=0.3),
    "file, all images": TrajectoryFile("plans.npz", validation_share=0.3, suffixes=True, rotate=True, reflect=True),
    "shipped text": TextFile("onpath:tinyshakespeare.txt.gz", length=32),
    "text": TextFile("text.txt", length=20, validation_share=0.3),
    "text, begun": TextFile("text.txt", Bytes(end=True), length=20, begin=True),
    "text, packed": TextFile("texts.jsonl", Characters(end=True), length=32, documents=True),
    "text, packed and begun": TextFile("texts.jsonl", Bytes(end=True), length=48, documents=True, begin=True),
    "text, separated": TextFile("text.txt", Bytes(end=True), length=30, separator="\n", validation_path="texts.jsonl"),
    "text, cached": TextFile("text.txt", Bytes(), length=20, cache="cache"),
    "hub text": HubText("texts.jsonl", length=24, tokenizer=Bytes(end=True), documents=True, cache="cache"),
    "hub text, streamed": HubText("texts.jsonl", length=24, streaming=True, max_tokens=900, cache="cache"),
    "pairs": TextPairs("pairs.jsonl", length=40),
    "pairs, left": TextPairs("pairs.jsonl", Bytes(end=True), length=40, padding_side="left", begin=True),
    "pairs, filled": TextPairs("pairs.jsonl", length=40, end="fill"),
    "pairs, cut": TextPairs("pairs.jsonl", length=20, overflow="cut"),
    "prompts": Prompts("prompts.jsonl", length=40, max_completion_length=12),
    "prompts, right": Prompts("prompts.jsonl", Bytes(end=True), 48, 9, padding_side="right", begin=True),
    "sudoku": Sudoku(),
    "sudoku, few grids": Sudoku(blanks=10, unique=False, num_orbits=(2, 1, 1)),
    "sudoku 6 x 6": Sudoku(side=6),
    "countdown": CountdownPuzzles(),
    "countdown of four": CountdownPuzzles(num_numbers=4, largest=9, max_target=50, operations="+-*"),
    "digits": Digits(),
    "digits, unlabelled": Digits(labels=False),
    "mnist, padded": MNIST("idx", pad=2, validation_examples=9),
    "fashion mnist": FashionMNIST("idx", validation_examples=9),
    "fashion mnist, small, unlabelled": FashionMNIST("idx", labels=False, size=14, validation_examples=9),
    "cifar10": Cifar10("cifar", validation_examples=5),
    "image folder": ImageFolder("folder", 6, flip=True, cache="cache"),
    "image folder, grey, unlabelled": ImageFolder("folder", 4, channels=1, labels=False, cache="cache"),
    "hub images": HubImages("pictures.parquet", 5, flip=True, cache="cache"),
    "latents": Latents("latents.safetensors", scale=0.2),
}

# tokenizers by name; the files of the last ones are written by the tests that read them
TOKENIZERS: dict[str, Tokenizer] = {
    "characters": Characters("".join(sorted(set("".join(WORDS)))) + " "),
    "characters with end": Characters(" abcdefghijklmnopqrstuvwxyzéï漢字…", end=True),
    "bytes": Bytes(),
    "bytes with end": Bytes(end=True),
    "byte pairs": HuggingFaceTokenizer("byte-pairs"),
    "byte pairs, chat": HuggingFaceTokenizer("chat"),
    "byte pairs, marked": HuggingFaceTokenizer("chat", mask_token="<|im_start|>", end_token="<|endoftext|>"),
    "byte pairs, file": HuggingFaceTokenizer("byte-pairs/tokenizer.json"),
    "word pieces": HuggingFaceTokenizer("word-pieces"),
}

# networks of images by name, made from their spec
IMAGE_DENOISERS: dict[str, Callable[[ImageSpec], nn.Module]] = {
    "image_unet": partial(ImageUNet, width=16, levels=(1, 2)),
    "image_unet, deep": partial(ImageUNet, width=8, levels=(1, 2, 2), blocks=2, attention=False),
}

OPTIMIZERS: dict[str, OptimizerConfig] = {"adamw": AdamW(weight_decay=0.1), "muon": Muon()}

REWARDS: dict[str, Reward] = {
    "function": FunctionReward("judges:shortness"),
    "gsm8k_correct": GSM8KCorrect(scale=1.5, anywhere=False),
    "strict_format": StrictFormat(scale=0.25),
    "soft_format": SoftFormat(reasoning="think"),
    "integer_answer": IntegerAnswer(),
    "math": Math(seconds_per_answer=2.0),
    "countdown": Countdown(correct=2.0, format=0.0),
    "sudoku_solved": SudokuSolved(),
    "sudoku_solved, upright boxes": SudokuSolved(box=(3, 2)),
    "sudoku_cells": SudokuCells(scale=0.2),
    "plan_success": PlanSuccess(per_step=0.01),
    "plan_progress": PlanProgress(),
}

# networks by name, made from the spec of a grid-world source
DENOISERS: dict[str, Callable[[Spec], nn.Module]] = {
    "plan_mlp": partial(PlanMLP, width=32, hidden=48, depth=2),
    "plan_transformer": partial(PlanTransformer, width=32, num_heads=2, depth=2, convs=1),
    "plan_transformer without time": partial(PlanTransformer, width=32, num_heads=2, depth=1, convs=0, time=False),
}

# networks by name, made from the spec of tokens without conditions
TOKEN_DENOISERS: dict[str, Callable[[Spec], nn.Module]] = {
    "token_transformer": partial(TokenTransformer, width=32, num_heads=4, depth=2),
    "token_transformer, gated, recomputed": partial(
        TokenTransformer, width=32, num_heads=2, depth=1, mlp="gated", recompute=True
    ),
    "token_transformer with time": partial(TokenTransformer, width=32, num_heads=2, depth=1, reads=("time",)),
    "token_transformer with places": partial(TokenTransformer, width=32, num_heads=2, depth=1, reads=("place",)),
}
