"""The parts of the benchmarks that measure: their estimator, and the networks that they compare."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onpath.data.source import Source
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.rollouts import trajectory
from onpath.sampling.solvers import Euler, UniPC
from onpath.scheduled_sampling import ScheduledSampling
from onpath.schedules import BetasSchedule, LinearSchedule
from onpath.types import Batch, Noised, Spec

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are no package

from benchmarks import _mdlm_peer as peer
from benchmarks import _policy_peer as policy_peer
from benchmarks import _rollout_peer as rollout_peer
from benchmarks import mdlm, policy, rollout, sampler_text, train_step
from benchmarks._rollout_networks import digits_network

WORDS, LENGTH = 7, 12
CHECKOUT = os.environ.get("MDLM_CHECKOUT", "")
needs_peer = pytest.mark.skipif(not CHECKOUT, reason="MDLM_CHECKOUT names no checkout of kuleshov-group/mdlm")

DLLM = os.environ.get("DLLM_CHECKOUT", "")
SIZES = {"width": 16, "depth": 1, "heads": 2, "num-words": 40, "prompt": 3, "completion": 8, "batch": 4, "repeats": 1}


class Fixed(torch.nn.Module):
    """A network that gives the same log-probabilities to every position."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def encode(self, **cond: Tensor) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, memo: None, *, rows: Any = None, readout: Any = None) -> Any:
        return readout(self.logits.expand(len(rows), -1), rows)


@dataclass(frozen=True)
class Texts(Source):
    """Some fixed tokens."""

    num_examples = 1024

    def spec(self) -> Spec:
        return Spec(LENGTH, WORDS, WORDS)

    def at_split(self, split: str) -> Source:
        return self

    def examples(self, ids: Tensor, device: torch.device | str = "cpu") -> Batch:
        return Batch.of_tokens((ids[:, None] * 5 + torch.arange(LENGTH) ** 2) % WORDS, ids)


def test_bits_of_a_known_network_are_those_of_its_likelihood() -> None:
    texts, process = Texts(), Masking(LinearSchedule(), WORDS)
    even = mdlm.held_out_bits(Fixed([1 / WORDS] * WORDS), process, texts, rounds=4)
    assert statistics.fmean(even) == pytest.approx(math.log2(WORDS), rel=1e-3)
    shares = [0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05]
    true = -torch.tensor(shares).log2()[texts.examples(torch.arange(1024)).x].mean(1).double()
    drawn = torch.tensor(mdlm.held_out_bits(Fixed(shares), process, texts, rounds=4))
    assert abs(float((drawn - true).mean())) < 4 * float((drawn - true).std()) / math.sqrt(len(true))


def test_mean_and_its_standard_error() -> None:
    assert mdlm.mean_and_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, math.sqrt(14 / 3) / 2))


def test_verdict_counts_the_larger_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = [mdlm.Trained([3.0, 3.2, 3.1, 3.3], 1e-3, 0.0, 1, 1.0)] * 2
    mine = [mdlm.Trained([b - d for b in theirs[0].bits], 1e-3, 0.0, 1, 1.0) for d in (0.1, 0.3)]
    mdlm.verdict({seed: pair for seed, pair in enumerate(zip(mine, theirs, strict=True))})
    # all sequences agree, the seeds do not: -.2 with a standard error of .1
    assert "ours lower by 2.0 standard errors" in capsys.readouterr().out.splitlines()[-1]


def test_full_logits_and_masked_rows_train_alike() -> None:
    sizes = train_step.Sizes(width=16, depth=1, heads=2, length=8, num_words=11, batch=4)
    trainer = train_step.Trainer(steps=10, batch_size=2)
    weights = []
    for wrap in (lambda n: n, lambda n: train_step.FullLogits(n, True), lambda n: train_step.FullLogits(n, False)):
        contender = train_step.ours(sizes, trainer, "cpu", "pairs", wrap)
        for _ in range(3):
            contender.step()
        assert contender.share() == 0.5
        weights.append(torch.cat([p.detach().flatten() for p in contender.model.parameters()]))
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0])


def test_floor_of_a_step_by_hand() -> None:
    sizes = train_step.Sizes(width=16, depth=1, heads=2, length=8, num_words=11, batch=4)
    model = train_step.ours(sizes, train_step.Trainer(steps=10, batch_size=4), "cpu").model
    body, ends, tokens = 12 * 16**2, (11 + 12) * 16, 32
    products = 6 * body * tokens + 6 * 11 * 16 * tokens / 2 + 12 * 16 * 8 * tokens
    expected = products / 1e9 + 28 * (body + ends) / 1e8
    assert train_step.floor_seconds(model, sizes, 1e9, 1e8) == pytest.approx(expected)


def test_attention_by_softmax_is_that_of_torch() -> None:
    qkv = torch.randn(2 * LENGTH, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0, LENGTH, 2 * LENGTH])
    by_torch = peer.attended(qkv, ends, LENGTH, 0.0)
    torch.testing.assert_close(peer.attended_by_softmax(qkv, ends, LENGTH, 0.0), by_torch)


def test_turned_queries_and_keys_depend_on_the_distance_alone() -> None:
    angle = torch.arange(LENGTH)[:, None] * torch.tensor([1.0, 0.1])
    qkv = torch.randn(1, 1, 3, 1, 4, generator=torch.Generator().manual_seed(0)).expand(1, LENGTH, 3, 1, 4)
    query, key, value = peer.turned(qkv, angle.cos(), angle.sin())[0, :, :, 0].unbind(1)
    scores = query @ key.T
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])
    torch.testing.assert_close(value, qkv[0, :, 2, 0])


def test_a_folder_without_mdlm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds no diffusion.py.*give the folder of a checkout of kuleshov-group/mdlm"
    ):
        peer.load(tmp_path)


@needs_peer
@pytest.mark.filterwarnings("ignore")
def test_mdlms_loss_is_weighed_as_ours() -> None:
    """At its first step MDLM's network is even, so its own loss is a count of masks over their expected share."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "length": LENGTH}
    diffusion = peer.build(peer.load(CHECKOUT), sizes, WORDS, dropout=0.0)
    x = Texts().examples(torch.arange(4096)).x
    assert float(diffusion._loss(x, torch.ones_like(x)).loss) == pytest.approx(math.log(WORDS), rel=0.05)
    process = Masking(LinearSchedule(), WORDS)
    bits = mdlm.held_out_bits(peer.PeerDenoiser(diffusion), process, Texts(), rounds=2)
    assert statistics.fmean(bits) == pytest.approx(math.log2(WORDS), rel=1e-3)
    assert {"utils", "models", "diffusion"}.isdisjoint(sys.modules)  # its names are of nobody else's concern


@needs_peer
@pytest.mark.filterwarnings("ignore")
def test_mdlms_log_probabilities_are_carried_over_and_never_of_the_mask() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "length": LENGTH}
    denoiser = peer.PeerDenoiser(peer.build(peer.load(CHECKOUT), sizes, WORDS)).eval()
    torch.nn.init.normal_(denoiser.diffusion.backbone.output_layer.linear.weight)
    x = Texts().examples(torch.arange(2)).x
    x[:, ::2] = WORDS
    words = denoiser(x, torch.ones(2), None).exp()
    assert words.shape == (2, LENGTH, WORDS)
    torch.testing.assert_close(words.sum(-1), torch.ones(2, LENGTH))
    assert (words[:, 1::2].argmax(-1) == x[:, 1::2]).all() and words[:, 1::2].amax(-1).eq(1).all()


# --- samplers -------------------------------------------------------------------------------------------------------


def test_samplers_without_a_peer_say_what_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sampler_text", "--words", "20", "--length", "8", "--depth", "1"])
    sampler_text.main()
    written = capsys.readouterr()
    assert written.out == "" and "LLaDA" in written.err and "mdlm" in written.err


def test_peers_are_found_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "LLaDA").mkdir()
    (tmp_path / "LLaDA" / "generate.py").write_text("generate = len\n")
    assert sampler_text.found([tmp_path], "generate.py", "LLaDA") == tmp_path / "LLaDA"
    assert sampler_text.found([tmp_path / "LLaDA"], "generate.py", "LLaDA") == tmp_path / "LLaDA"
    assert sampler_text.found([tmp_path], "diffusion.py", "mdlm") is None
    assert sampler_text.imported(tmp_path / "LLaDA" / "generate.py").generate("abc") == 3


def test_adapters_give_the_logits_of_the_network() -> None:
    net = sampler_text.network(Spec(6, 20, 20), depth=1)
    x = torch.tensor([[3, 20, 5, 20, 20, 1]])
    logits = net(x, torch.zeros(1), net.encode()).detach()
    assert torch.equal(sampler_text.AsLLaDA(net)(x).logits, logits)
    theirs = sampler_text.AsMDLM(net)(x, torch.zeros(1))
    assert theirs.shape == (1, 6, 21) and torch.equal(theirs[..., :20], logits)
    assert float(logits.std()) > 0.1


# --- rollouts -------------------------------------------------------------------------------------------------------


def test_rollouts_are_timed_without_a_peer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = (
        "--networks image_unet --batch 3 --offset 2 --repeats 1 --overhead-batch 2 --offsets 0 2 --probabilities 0 1"
    )
    monkeypatch.setattr(sys, "argv", ["rollout", *small.split()])
    rollout.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    beside = [row for row in rows if "beside one row at a time" in row["case"]]
    assert len(beside) == 3 * 2 + 2 and all(row["value"] > 0 and row["ratio"] > 0 for row in beside)
    ratios = [row["ratio"] for row in rows[len(beside) :]]
    assert len(ratios) == 4 and ratios[:3] == [1.0] * 3  # nothing is rolled out in these three


@pytest.mark.parametrize("kind", ["flow", "eps"])
def test_rows_alone_are_rolled_out_as_in_a_batch(kind: str) -> None:
    torch.manual_seed(0)
    rule = ScheduledSampling(3, 1, rollout.STEPS, 1.0)
    bench = rollout.Bench.of(digits_network(), kind, (1, 8, 8), 5, rule)
    state = bench.state()
    together = bench.rolled(bench.batch, state)
    torch.testing.assert_close(bench.one_by_one(state), together, rtol=1e-4, atol=1e-5)
    assert float((together - state.x).abs().flatten(1).amax(1).min()) > 1e-3


def test_the_stand_in_for_skrample_is_unipc() -> None:
    """On a table that runs from noise to data; the order of its entries is up to the caller."""
    process = Gaussian(BetasSchedule(num_steps=11), "vp", "x0")
    points = torch.linspace(0.9, 0.4, 6, dtype=torch.float64)
    a, s = process.coefficients(points)
    solver, x, previous = rollout_peer._UniPC(), torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64), ()
    for step in range(5):
        result = solver.sample(x, x.sin(), step, (s / a).numpy(), rollout_peer._polar, None, previous)
        x, previous = result.final, (*previous, result)

    class Sine(torch.nn.Module):
        def encode(self) -> None:
            return None

        def forward(self, x: Tensor, t: Tensor, memo: None) -> Tensor:
            return x.sin()

    begin = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)
    start, batch = Noised(begin, points[:1], begin), Batch(begin, torch.zeros(1, dtype=torch.int64))
    walks = (points[:, None], torch.tensor([5]))
    away = [
        float((trajectory(Sine(), process, solver, batch, start, walks, Key()) - x).abs().max())
        for solver in (UniPC(), Euler())
    ]
    assert away[0] < 1e-4 and away[1] > 10 * away[0]  # both take another weight where there is one point


def test_a_folder_without_simpletuner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plan.py; give the folder of a checkout of bghira/SimpleTuner"):
        rollout_peer.load(tmp_path)


def test_the_policy_loss_runs_beside_the_logits_of_all_positions(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [f"--{name}={value}" for name, value in SIZES.items()]
    policy.main([*sizes, "--precisions", "fp32", "--lengths", "end", "--betas", "0.04", "--passes", "2"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["metric"] for row in rows] == 2 * ["step", "peak memory", "products"]
    assert all(row["value"] > 0 and row["ratio"] > 0 for row in rows if row["metric"] != "products")
    assert all(0 < row["value"] < 1 for row in rows[2::3])
    assert [row["case"].count("one prompt") for row in rows] == [1, 1, 1, 0, 0, 0]


def test_a_folder_without_dllm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no dllm.*give the folder of a checkout of ZHZisZZ/dllm"):
        policy_peer.load(tmp_path)


@pytest.mark.skipif(not DLLM, reason="DLLM_CHECKOUT names no checkout of ZHZisZZ/dllm")
@pytest.mark.parametrize("one_prompt", [False, True])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(("num_iterations", "beta"), [(1, 0.0), (1, 0.04), (2, 0.0), (2, 0.04)])
def test_dllms_loss_and_gradient_are_ours(num_iterations: int, beta: float, ends: bool, one_prompt: bool) -> None:
    sizes = policy.Sizes(width=16, depth=1, heads=2, num_words=40, prompt=3, completion=8, batch=4)
    bench = policy.Bench.of(policy.Case(num_iterations, beta, ends, bf16=False, one_prompt=one_prompt), sizes, "cpu")
    found = policy.agreement(bench, policy_peer.load(DLLM))
    assert all(value < 1e-4 for value in found.values())
    assert not any(name.split(".")[0] in ("dllm", "trl") for name in sys.modules)
