"""The promises that every component of a kind keeps; a public class that is in no table fails here."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn

import onpath
import pictures
import texts
from networks import SPEC, close, examples, fresh, noisy, planner, plans
from onpath.data.huggingface import HuggingFaceTokenizer
from onpath.data.puzzles import Puzzles
from onpath.data.source import ImageSource, Source, TextSource
from onpath.data.tokenizers import MASK_SIGN, Characters, Tokenizer
from onpath.data.trajectories import FourRoomsExpert, TrajectoryFile
from onpath.data.trajectory_files import save
from onpath.models.from_diffusers import Diffusers
from onpath.objectives.base import Objective
from onpath.objectives.estimators import Estimator
from onpath.objectives.weighting import LossWeight, TimeDensity
from onpath.processes.base import Process
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking
from onpath.ramps import Ramp
from onpath.rewards.base import Reward
from onpath.rng import Key
from onpath.sampling.counts import Count
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Sampler
from onpath.sampling.remasking import Remask
from onpath.schedules import LinearSchedule, Schedule
from onpath.training.optimizers import OptimizerConfig
from onpath.types import Batch, Loss, Nets, Spec
from tables import (
    COUNTS,
    DENOISERS,
    ESTIMATORS,
    GRIDS,
    IMAGE_DENOISERS,
    IMAGE_OBJECTIVES,
    LOSS_WEIGHTS,
    OBJECTIVES,
    OPTIMIZERS,
    POLICIES,
    PROCESSES,
    RAMPS,
    REMASKS,
    REWARDS,
    SAMPLERS,
    SCHEDULES,
    SOLVERS,
    SOURCES,
    TIME_DENSITIES,
    TOKEN_DENOISERS,
    TOKENIZERS,
)
from worlds import HashDenoiser

WORDS, LENGTH = 5, 12
MASK = WORDS
PROCESS = Masking(LinearSchedule(), MASK)
KEY = Key(9, "loss", 4)

KINDS: dict[type, dict[str, Any]] = {
    Schedule: SCHEDULES,
    Ramp: RAMPS,
    Grid: GRIDS,
    Count: COUNTS,
    Remask: REMASKS,
    Sampler: {**SAMPLERS, **SOLVERS},
    TimeDensity: TIME_DENSITIES,
    LossWeight: LOSS_WEIGHTS,
    Objective: {
        **{name: make(PROCESS) for name, make in OBJECTIVES.items()},
        **{name: make(Gaussian(LinearSchedule())) for name, make in IMAGE_OBJECTIVES.items()},
        **{name: make(PROCESS) for name, make in POLICIES.items()},
    },
    Estimator: ESTIMATORS,
    Source: SOURCES,
    Tokenizer: TOKENIZERS,
    OptimizerConfig: OPTIMIZERS,
    Reward: REWARDS,
    Process: {name: make(LinearSchedule(), MASK) for name, make in PROCESSES.items()},
}


# --- the tables are complete --------------------------------------------------------------------------------------


def public_classes(package: str = "onpath") -> set[type]:
    names = [info.name for info in pkgutil.walk_packages(onpath.__path__, "onpath.") if "__main__" not in info.name]
    modules = [importlib.import_module(name) for name in names if name.startswith(package)]
    classes = {c for module in modules for c in vars(module).values() if inspect.isclass(c)}
    return {c for c in classes if c.__module__.startswith(package) and not c.__name__.startswith("_")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_public_class_is_in_its_table(kind: type) -> None:
    concrete = {c for c in public_classes() if issubclass(c, kind) and not inspect.isabstract(c) and c is not kind}
    assert {c.__name__ for c in concrete} == {type(component).__name__ for component in KINDS[kind].values()}


def test_every_network_is_in_its_table() -> None:
    found = {c for c in public_classes("onpath.models") if issubclass(c, nn.Module) and "encode" in vars(c)}
    networks = {c for c in found if not inspect.isabstract(c)}  # LanguageModel: models/test_from_transformers.py
    networks -= {Diffusers}  # models/test_from_diffusers.py
    table = [*DENOISERS.values(), *TOKEN_DENOISERS.values(), *IMAGE_DENOISERS.values()]
    assert networks == {make.func for make in table if isinstance(make, partial)}


COMPONENTS = [
    pytest.param(c, id=f"{kind.__name__} {name}") for kind, table in KINDS.items() for name, c in table.items()
]


@pytest.mark.parametrize("component", COMPONENTS)
def test_components_are_frozen_and_their_constructor_is_their_config(component: Any) -> None:
    fields = {f.name: getattr(component, f.name) for f in dataclasses.fields(component)}
    again = type(component)(**fields)
    assert again == component and hash(again) == hash(component)
    for value in fields.values():
        plain = value if isinstance(value, tuple) else (value,)
        assert all(dataclasses.is_dataclass(v) or isinstance(v, int | float | str | tuple | None) for v in plain)
    name = dataclasses.fields(component)[0].name if fields else "anything"
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        setattr(component, name, None)


@pytest.mark.parametrize("component", COMPONENTS)
def test_components_are_final(component: Any) -> None:
    """Abstract or final: nothing inherits from a concrete class."""
    for base in type(component).__mro__[1:]:
        if base.__module__.startswith("onpath"):
            assert inspect.isabstract(base) or base in KINDS


# --- sources ------------------------------------------------------------------------------------------------------

IDS = torch.tensor([7, 0, 3, 1000, 7])


@pytest.fixture(scope="module")
def picture_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pictures.write_all(folder)
    return folder


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path, picture_files: Path) -> Any:
    """Each source of the table; those that read files read 300 plans of the expert, some texts or some pictures."""
    made = SOURCES[request.param]
    folder = picture_files if isinstance(made, ImageSource) else tmp_path
    if isinstance(made, TrajectoryFile):
        save(tmp_path / made.path, FourRoomsExpert().record(torch.arange(300)))
    elif isinstance(made, TextSource):
        texts.write_all(tmp_path)
    paths = {"path", "validation_path", "name", "cache"} & {field.name for field in dataclasses.fields(made)}
    given = {name: getattr(made, name) for name in paths if getattr(made, name)}
    inside = {name: str(folder / path) for name, path in given.items() if not path.startswith("onpath:")}
    return dataclasses.replace(made, **inside)


def tensors(batch: Batch) -> list[torch.Tensor]:
    fields = (batch.x, batch.ids, batch.given, batch.padding, batch.num_free, batch.documents, *batch.cond.values())
    return [t for t in fields if t is not None]


def test_an_example_is_a_function_of_its_id_alone(source: Any) -> None:
    state = torch.get_rng_state()
    whole = source.examples(IDS)
    for row in range(len(IDS)):
        alone = source.examples(IDS[row : row + 1])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(tensors(alone), tensors(whole), strict=True))
    assert all(torch.equal(t[0], t[4]) for t in tensors(whole)) and not torch.equal(whole.x[0], whole.x[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_examples_are_as_the_spec_says(source: Any) -> None:
    for part in (source, source.at_split("validation")):
        spec, batch = part.spec(), part.examples(IDS)
        assert torch.equal(batch.ids, IDS)
        if isinstance(spec, Spec):
            assert batch.x.shape == (5, spec.length)
            told = batch.x if source.has_answers else batch.x[~batch.free()]
            assert int(told.min()) >= 0 and int(told.max()) < spec.num_words <= spec.mask_id
            assert source.has_answers or bool((batch.x[batch.free()] == spec.mask_id).all())
        else:
            assert batch.x.shape == (5, *spec.shape) and batch.x.dtype == torch.float32
            assert part.classes == source.classes and len(source.classes) in (0, spec.num_classes)
            if "label" in batch.cond:
                label = batch.cond["label"]
                assert label.dtype == torch.int64 and 0 <= int(label.min()) <= int(label.max()) < spec.num_classes
        assert {name: tuple(value.shape[1:]) for name, value in batch.cond.items()} == dict(spec.cond)
    assert not torch.equal(source.examples(IDS).x, source.at_split("validation").examples(IDS).x)


def test_a_run_keeps_what_the_data_decide(source: Any) -> None:
    settled = {
        name: dataclasses.replace(getattr(source, name), **part) if isinstance(part, dict) else part
        for name, part in source.settled().items()
    }
    again = dataclasses.replace(source, **settled)
    assert (again.spec() == source.spec() and not again.settled()) or again.settled() == source.settled()


def test_text_can_be_asked_for(source: Any) -> None:
    if not isinstance(source, TextSource) or isinstance(source, Puzzles):  # which are asked for as such
        return
    request = source.request(["a", "a b[MASK:3]a"], torch.tensor([3, 5]), num_new_tokens=4)
    free = request.free()
    assert torch.equal(request.free_counts(), free.sum(1)) and free.sum(1).tolist() == [4, 7]
    assert bool((request.x[free] == source.codec.mask_id).all())
    for row, text in ((0, "a"), (1, "a b▒▒▒a")):
        kept = request.x[row] if request.padding is None else request.x[row][~request.padding[row]]
        assert source.words(kept.tolist()) == text + "▒" * 4


def test_a_puzzle_is_asked_for_as_it_reads(source: Any) -> None:
    if not isinstance(source, Puzzles):
        return
    batch, asked = source.prompts(IDS), source.asked(IDS)
    again = source.request(asked, IDS)
    assert source.num_examples is None and [text.count("▒") for text in asked] == batch.free_counts().tolist()
    shown = batch.x.masked_fill(batch.free(), source.codec.mask_id)
    assert torch.equal(again.x, shown) and torch.equal(again.free(), batch.free()) and torch.equal(again.ids, IDS)
    columns = source.columns(IDS)
    assert columns and all(len(values) == len(IDS) for values in columns.values())
    alone = source.columns(IDS[3:4])
    assert all(alone[name] == values[3:4] for name, values in columns.items())


# --- tokenizers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    texts.write_byte_pairs(folder / "byte-pairs")
    texts.write_byte_pairs(folder / "chat", chat=True)
    texts.write_word_pieces(folder / "word-pieces")
    return folder


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tokenizer_files: Path) -> Tokenizer:
    made = TOKENIZERS[request.param]
    if not isinstance(made, HuggingFaceTokenizer):
        return made
    return dataclasses.replace(made, name=str(tokenizer_files / made.name))


def test_a_tokenizer_writes_text_and_reads_it_again(tokenizer: Tokenizer) -> None:
    for text in texts.documents(12):
        if isinstance(tokenizer, Characters):
            text = "".join(c for c in text if c in tokenizer.alphabet)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.encode_many([text, text]) == [ids, ids]
        assert [array.tolist() for array in tokenizer.arrays([text, "", text])] == [ids, [], ids]
        assert not {tokenizer.mask_id, tokenizer.end_id} & set(ids) and max(ids) < tokenizer.num_words
        pieces = tokenizer.pieces(ids)
        assert len(pieces) == len(ids) and "".join(pieces) == text


def test_special_tokens_are_apart_and_are_shown(tokenizer: Tokenizer) -> None:
    mask, end, ids = tokenizer.mask_id, tokenizer.end_id, tokenizer.encode("zeta beta")
    special = [i for i in (mask, end) if i is not None]
    assert len(set(special)) == len(special) and 0 <= tokenizer.pad_id < tokenizer.num_words != end
    assert tokenizer.pieces([mask, *ids, mask])[:: len(ids) + 1] == [MASK_SIGN, MASK_SIGN]
    assert tokenizer.decode([mask, *ids, mask]).count(MASK_SIGN) == 2
    if end is not None:
        assert tokenizer.decode([tokenizer.begin_id, *ids, end]) == tokenizer.decode(ids)
        assert tokenizer.pieces([*ids, end])[:-1] == tokenizer.pieces(ids) and tokenizer.pieces([end])[0]


# --- optimizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_every_parameter_is_in_one_optimizer_and_moves(config: OptimizerConfig) -> None:
    network, batch = planner("plan_mlp").train(), plans(32)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizers = config.build(network)
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(map(id, held))) == len(before)
    drop = torch.arange(32) % 4 == 0
    logits = network(*noisy(batch), network.encode(**batch.cond, drop=drop))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.x.flatten()).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert not [name for name, p in network.named_parameters() if torch.equal(p, before[name])]


# --- objectives ---------------------------------------------------------------------------------------------------

every_objective = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def ragged(size: int = 8) -> Batch:
    """Prompts, padding, one row without either and one with nothing to score; a condition."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, WORDS, (size, LENGTH), generator=generator)
    given = torch.rand(size, LENGTH, generator=generator) < 0.3
    padding = torch.arange(LENGTH) >= torch.randint(6, LENGTH + 1, (size, 1), generator=generator)
    given[2], padding[2], given[3] = False, False, True
    # where nothing may be read or scored there is nonsense
    x = x.masked_fill(padding, 10**6)
    return Batch.of_tokens(x, torch.arange(50, 50 + size), given=given, padding=padding, cond={"c": torch.arange(size)})


def network_for(make: Any) -> HashDenoiser:
    """A table with a logit for [MASK] where the objective asks for one."""
    return HashDenoiser(WORDS, with_mask=make(PROCESS).predicts_mask)


def evaluate(make: Any, batch: Batch, network: Any = None, key: Key = KEY, step: int = 3) -> Loss:
    return make(PROCESS)(Nets(network_for(make) if network is None else network), batch, key, step)


@every_objective
def test_same_key_same_loss_and_nothing_is_changed(make: Any) -> None:
    batch, state = ragged(), torch.get_rng_state()
    whole = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name != "cond"}
    tensors = {name: value.clone() for name, value in whole.items() if value is not None}
    one, two = evaluate(make, batch), evaluate(make, batch)
    assert torch.equal(one.numerator, two.numerator) and float(one.denominator) == float(two.denominator)
    assert float(evaluate(make, batch, key=KEY.at(5)).numerator) != float(one.numerator)
    assert all(torch.equal(getattr(batch, name), value) for name, value in tensors.items())
    assert set(batch.cond) == {"c"}
    assert torch.equal(torch.get_rng_state(), state)
    assert one.numerator.isfinite() and float(one.denominator) > 0


@every_objective
def test_the_head_sees_masked_free_positions_only(make: Any) -> None:
    batch, network = ragged(), network_for(make)
    evaluate(make, batch, network)
    for x, t, rows in network.forwards:
        copies = len(x) // batch.size
        free = batch.free().repeat(copies, 1)
        assert not (x == MASK)[~free].any()
        if make(PROCESS).predicts_mask:  # which scores right and wrong words too
            assert torch.equal(rows, free.flatten().nonzero()[:, 0])
            assert torch.equal(x[~free], batch.x.repeat(copies, 1)[~free])
        else:
            assert torch.equal(rows, (x == MASK).flatten().nonzero()[:, 0])
            assert torch.equal(x[x != MASK], batch.x.repeat(copies, 1)[x != MASK])
        share = (x == MASK).sum(1) / free.sum(1).clamp_min(1)
        torch.testing.assert_close(t, share.float())


@every_objective
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_of_a_batch_add_up_to_the_whole(make: Any, parts: int) -> None:
    """8 × 1 = 4 × 2 = 2 × 4: sums, denominators and metrics, whatever the layout over micro-batches and ranks."""
    whole, size = evaluate(make, ragged()), 8 // parts
    losses = [evaluate(make, ragged().rows(slice(i * size, (i + 1) * size))) for i in range(parts)]
    torch.testing.assert_close(sum(loss.numerator for loss in losses), whole.numerator, rtol=1e-5, atol=1e-5)
    assert sum(float(loss.denominator) for loss in losses) == float(whole.denominator)
    for name, (total, count) in whole.metrics.items():
        if name == "num_masked":
            continue  # a count by call
        assert sum(float(loss.metrics[name][0]) for loss in losses) == pytest.approx(float(total), rel=1e-5)
        assert sum(float(loss.metrics[name][1]) for loss in losses) == pytest.approx(float(count), rel=1e-5)


@every_objective
def test_a_row_with_nothing_to_score_adds_nothing(make: Any) -> None:
    batch = ragged()
    alone = evaluate(make, batch.rows(torch.tensor([3])))
    assert float(alone.numerator) == 0.0 and float(alone.denominator) == 0.0


@every_objective
def test_gradient_reaches_the_mask_inputs_and_the_head(make: Any) -> None:
    predicts = make(PROCESS).predicts_mask
    network = planner("plan_mlp", mask_logit=predicts)
    made = make(Masking(LinearSchedule(), SPEC.mask_id), **({"num_words": SPEC.num_words} if predicts else {}))
    made(Nets(network), plans(16), KEY, 0).mean.backward()
    by_token = network.read_plan.weight.grad.view(-1, SPEC.length, SPEC.num_words + 1).abs().sum((0, 1))
    assert float(by_token[SPEC.mask_id]) > 0 and float(by_token[:-1].sum()) > 0
    assert float(network.head.weight.grad.abs().sum()) > 0


@every_objective
def test_condition_dropout_by_example(make: Any) -> None:
    class Spy(HashDenoiser):
        def encode(self, **cond: torch.Tensor) -> Any:
            self.cond = cond
            return super().encode(**cond)

    def drops(probability: float, batch: Batch) -> torch.Tensor | None:
        network = Spy(WORDS, with_mask=make(PROCESS).predicts_mask)
        evaluate(partial(make, condition_dropout=probability), batch, network)
        return network.cond.get("drop")

    assert drops(0.0, ragged()) is None
    assert drops(1.0, ragged()).all()
    some = drops(0.3, ragged(400))
    assert 0.2 < float(some.float().mean()) < 0.4
    assert torch.equal(drops(0.3, ragged(400).rows(slice(100, 200))), some[100:200])


@every_objective
def test_dropout_hides_the_prompt_where_there_is_no_condition(make: Any) -> None:
    batch, network = dataclasses.replace(ragged(), cond={}), network_for(make)
    evaluate(partial(make, condition_dropout=1.0), batch, network)
    x, _, rows = network.forwards[0]
    copies = len(x) // batch.size
    prompt = (batch.given & ~batch.padding).repeat(copies, 1)
    assert (x[prompt] == MASK).all()
    assert batch.free().repeat(copies, 1).flatten()[rows].all(), "a hidden prompt must not be scored"


@every_objective
def test_a_logit_for_mask_is_no_part_of_the_distribution(make: Any) -> None:
    if make(PROCESS).predicts_mask:
        pytest.skip("it asks for [MASK]")
    plain, extra = HashDenoiser(WORDS), HashDenoiser(WORDS)
    extra.table = torch.cat([plain.table, torch.full_like(plain.table[:, :1], 7.0)], 1)
    one, two = evaluate(make, ragged(), plain), evaluate(make, ragged(), extra)
    torch.testing.assert_close(one.numerator, two.numerator)


# --- networks -----------------------------------------------------------------------------------------------------

every_network = pytest.mark.parametrize("name", [*DENOISERS, *TOKEN_DENOISERS])
every_planner = pytest.mark.parametrize("name", DENOISERS)


@every_network
@torch.no_grad()
def test_logits_at_rows_and_through_a_readout_equal_those_of_all(name: str) -> None:
    network, batch = planner(name), examples(name, 900)  # 9,000 rows: more than one chunk of the readout
    x, t = noisy(batch)
    memo = network.encode(**batch.conditions())
    full = network(x, t, memo)
    assert full.shape == (900, SPEC.length, SPEC.num_words) and full.isfinite().all()
    flat, rows = full.flatten(0, 1), torch.tensor([3, 17, 17, 8999, 0])
    close(network(x, t, memo, rows=rows), flat[rows])
    seen, both = network(x, t, memo, readout=lambda logits, at: (at, logits))
    assert torch.equal(seen, torch.arange(9000))
    close(both, flat)
    many = torch.arange(8999, -1, -1)
    close(network(x, t, memo, rows=many, readout=lambda logits, at: logits), flat[many])
    none = network(x, t, memo, rows=many[:0], readout=lambda logits, at: at)
    assert none.shape == (0,)


@every_network
@torch.no_grad()
@pytest.mark.parametrize("padding", [False, True])
def test_one_memo_serves_several_states_of_its_batch(name: str, padding: bool) -> None:
    network, batch = planner(name), examples(name, 5, padding=padding)
    memo = network.encode(**batch.conditions())
    states = [noisy(batch, ratio) for ratio in (0.2, 0.5, 1.0)]
    together = network(torch.cat([x for x, _ in states]), torch.cat([t for _, t in states]), memo)
    close(together, torch.cat([network(x, t, memo) for x, t in states]))


@every_network
@torch.no_grad()
@pytest.mark.parametrize("padding", [False, True])
def test_a_row_does_not_depend_on_its_batch(name: str, padding: bool) -> None:
    network, batch = planner(name), examples(name, 6, padding=padding)
    x, t = noisy(batch)
    whole = network(x, t, network.encode(**batch.conditions()))
    part = batch.rows(torch.tensor([4, 1]))
    close(network(x[[4, 1]], t[[4, 1]], network.encode(**part.conditions())), whole[[4, 1]])


@every_planner
@torch.no_grad()
def test_a_dropped_condition_leaves_no_trace(name: str) -> None:
    network, one, other = planner(name), plans(4), plans(4, seed=1)
    x, t = noisy(one)
    drop = torch.tensor([True, False, True, False])
    first, second, plain = (
        network(x, t, network.encode(**cond))
        for cond in ({**one.cond, "drop": drop}, {**other.cond, "drop": drop}, one.cond)
    )
    close(first[drop], second[drop])
    close(first[~drop], plain[~drop])
    assert (first[~drop] - second[~drop]).abs().amax((1, 2)).min() > 1e-2  # and without it the condition matters


@every_planner
def test_state_and_plan_and_both_conditions_matter(name: str) -> None:
    network, batch = planner(name), plans(2)
    x, t = noisy(batch)
    base = network(x, t, network.encode(**batch.cond))
    image = batch.cond["image"].clone()
    image[:, 0, 0, 0] = 3 - image[:, 0, 0, 0].clamp(1, 2)  # a wall more or less
    for cond in ({**batch.cond, "image": image}, {**batch.cond, "direction": (batch.cond["direction"] + 1) % 4}):
        assert (network(x, t, network.encode(**cond)) - base).abs().amax((1, 2)).min() > 1e-3
    changed = x.clone()
    changed[:, 7] = (changed[:, 7] + 1) % SPEC.mask_id
    moved = (network(changed, t, network.encode(**batch.cond)) - base).abs().amax(2)
    assert (moved[:, :7] > 1e-5).any(1).all(), "positions must hear of each other"


@every_network
def test_a_fresh_network_is_uniform_over_the_words(name: str) -> None:
    torch.manual_seed(0)
    network, batch = fresh(name), examples(name, 3)
    logits = network(*noisy(batch), network.encode(**batch.cond))
    assert torch.equal(logits, torch.zeros_like(logits))


@every_network
def test_every_parameter_learns(name: str) -> None:
    network, batch = planner(name).train(), examples(name, 64)
    drop = torch.arange(64) % 4 == 0
    logits = network(*noisy(batch), network.encode(**batch.cond, **({"drop": drop} if batch.cond else {})))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.x.flatten()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@every_network
@torch.no_grad()
def test_half_precision_stays_near(name: str) -> None:
    network, batch = planner(name), examples(name, 8)
    x, t = noisy(batch)
    exact = network(x, t, network.encode(**batch.cond)).softmax(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = network(x, t, network.encode(**batch.cond)).float().softmax(-1)
    assert (coarse - exact).abs().mean() < 0.004
