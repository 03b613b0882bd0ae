"""Countdown: every expression is computed again in exact fractions by Python itself; splits share no problem."""

from __future__ import annotations

import ast
import itertools
import re
from fractions import Fraction

import pytest
import torch

from onpath.data.countdown import CountdownPuzzles
from onpath.data.expressions import ALPHABET, longest, merges, values, written
from onpath.rewards.countdown import Countdown as Reward

IDS = torch.arange(600)
SOURCES = {
    "2": CountdownPuzzles(num_numbers=2),
    "3": CountdownPuzzles(),
    "4": CountdownPuzzles(num_numbers=4),
    "3 wide": CountdownPuzzles(largest=150, max_target=1000),
    "4 narrow": CountdownPuzzles(num_numbers=4, largest=9, max_target=9, operations="-/"),
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())


def computed(expression: str) -> Fraction:
    """The value of an expression in fractions, by Python's own grammar."""
    exact = re.sub(r"\d+", lambda number: f"Fraction({number[0]})", expression)
    return eval(compile(ast.parse(exact, mode="eval"), "", "eval"), {"Fraction": Fraction})


def halves(source: CountdownPuzzles, ids: torch.Tensor) -> list[tuple[str, str]]:
    batch = source.examples(ids)
    assert batch.given is not None and bool(batch.given.eq(batch.given[0]).all())
    return [tuple(source.words(row).split(":")) for row in batch.x.tolist()]  # type: ignore[misc]


@every_source
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_expression_makes_its_target_of_every_number(source: CountdownPuzzles, split: str) -> None:
    source = source.at_split(split)
    columns = source.columns(IDS)
    for (asked, answer), numbers, target in zip(
        halves(source, IDS), columns["numbers"], columns["target"], strict=True
    ):
        left, right = asked.split("=")
        assert list(map(int, left.split())) == numbers and int(right) == target
        assert len(numbers) == source.num_numbers and all(1 <= n <= source.largest for n in numbers)
        assert computed(answer) == target and 1 <= target <= source.max_target
        assert sorted(map(int, re.findall(r"\d+", answer))) == sorted(numbers)
        assert set(answer) & set("+-*/") <= set(source.operations) and not re.search(r"\b0\d", answer)


@pytest.mark.parametrize("num", [2, 3, 4])
def test_trees_are_written_with_the_parentheses_that_they_need(num: int) -> None:
    generator = torch.Generator().manual_seed(0)
    every = [(m, o) for m in range(len(merges(num))) for o in itertools.product(range(4), repeat=num - 1)]
    merge, used = torch.tensor([m for m, _ in every]), torch.tensor([o for _, o in every])
    numbers = torch.randint(1, 121, (len(every), num), generator=generator)
    size = longest(num, 3) + 1
    rows = written(numbers, merge, used, size).tolist()
    texts = ["".join(ALPHABET[i] for i in row if i < len(ALPHABET)) for row in rows]
    assert max(map(len, texts)) <= size - 1 and all(row[-1] == len(ALPHABET) for row in rows)
    found, whole = values(numbers, merges(num)[merge], used)
    for row, text in enumerate(texts):
        assert rows[row][: len(text)] == [ALPHABET.index(c) for c in text]  # nothing but ends behind
        parts = [Fraction(n) for n in numbers[row].tolist()]
        steps = []
        for place, operation in zip(merges(num)[merge[row]].tolist(), used[row].tolist(), strict=True):
            left, right = parts[place : place + 2]
            made = (left + right, left - right, left * right, left / right if right else Fraction(-1))[operation]
            parts[place : place + 2] = [made]
            steps.append(made)
        assert bool(whole[row]) == all(step > 0 and step.denominator == 1 for step in steps)
        if all(step > 0 for step in steps):
            assert computed(text) == steps[-1]
            assert not whole[row] or int(found[row]) == steps[-1]
        for inside in re.finditer(r"\(", text):  # without any pair the value is another, or the tree is
            depth, end = 0, inside.start()
            while True:
                depth += (text[end] == "(") - (text[end] == ")")
                if not depth:
                    break
                end += 1
            bare = text[: inside.start()] + text[inside.start() + 1 : end] + text[end + 1 :]
            assert ast.dump(ast.parse(bare)) != ast.dump(ast.parse(text))


def test_splits_share_no_problem_whatever_its_order_seed_or_settings() -> None:
    sources = [
        CountdownPuzzles(largest=6),
        CountdownPuzzles(largest=6, seed=5),
        CountdownPuzzles(largest=9, max_target=999),
    ]
    seen: dict[str, set[tuple[object, ...]]] = {}
    counts: dict[str, int] = {}
    for split in ("train", "validation", "test"):
        seen[split] = set()
        for source in sources:
            columns = source.at_split(split).columns(torch.arange(1500))
            pairs = zip(columns["numbers"], columns["target"], strict=True)
            seen[split] |= {(*sorted(numbers), target) for numbers, target in pairs}
        counts[split] = len(seen[split])
    assert not seen["train"] & seen["validation"] and not seen["test"] & (seen["train"] | seen["validation"])
    whole = sum(counts.values())
    assert 0.05 < counts["test"] / whole < 0.2 and 0.05 < counts["validation"] / whole < 0.2


def test_every_problem_of_a_small_world_is_in_its_split() -> None:
    source = CountdownPuzzles(num_numbers=2, largest=5, max_target=20)
    made = set()
    for split in ("train", "validation", "test"):
        columns = source.at_split(split).columns(torch.arange(3000))
        made |= {(*sorted(n), t) for n, t in zip(columns["numbers"], columns["target"], strict=True)}
    possible = set()
    for a, b in itertools.product(range(1, 6), repeat=2):
        found = {Fraction(a) + b, Fraction(a) - b, Fraction(a) * b, Fraction(a) / b}
        possible |= {(*sorted((a, b)), int(v)) for v in found if v > 0 and v.denominator == 1 and v <= 20}
    assert made == possible


@every_source
def test_the_reward_agrees(source: CountdownPuzzles) -> None:
    texts, columns = halves(source, IDS[:50]), source.columns(IDS[:50])
    told = {"prompts": [a for a, _ in texts], "completions": [b for _, b in texts], "completion_ids": [[1]] * 50}
    assert Reward()(**told, **columns) == [1.0] * 50  # type: ignore[arg-type]


@every_source
def test_rows_have_one_form_and_end(source: CountdownPuzzles) -> None:
    batch, spec = source.examples(IDS), source.spec()
    assert source.end_id == spec.num_words - 1 == 19
    assert int(batch.free_counts()[0]) == spec.length - source.prompt_length
    assert bool((batch.x[:, -1] == source.end_id).all())
    ended = batch.x == source.end_id
    assert bool((ended[:, 1:] >= ended[:, :-1]).all()) and not bool(ended[:, : source.prompt_length + 3].any())
    assert set(batch.x.unique().tolist()) >= set(range(13)) or source.largest < 10


def test_operations_trees_and_orders_all_occur() -> None:
    answers = [answer for _, answer in halves(CountdownPuzzles(), torch.arange(3000))]
    kinds = {re.sub(r"\d+", "n", answer) for answer in answers}
    assert {"n+n+n", "n-(n-n)", "n-(n+n)", "n*(n-n)", "n/(n/n)", "(n+n)/n", "n*n-n", "n-n/n", "n/n*n"} <= kinds
    columns = CountdownPuzzles().columns(torch.arange(3000))
    firsts = [n.index(int(re.findall(r"\d+", a)[0])) for n, a in zip(columns["numbers"], answers, strict=True)]
    assert min(firsts.count(place) for place in range(3)) > 600


def test_seeds_differ() -> None:
    assert CountdownPuzzles().columns(IDS) != CountdownPuzzles(seed=1).columns(IDS)


@pytest.mark.parametrize("prompt", ["3 7 12=29", " 3, 7 ,12 = 29 : ", " 3  7 12= 29:▒▒▒", "3 7 12=29:[MASK:4]"])
def test_a_problem_as_prompt(prompt: str) -> None:
    source = CountdownPuzzles()
    batch = source.request([prompt], torch.arange(1))
    assert batch.x.shape == (1, 24) and source.words(batch.x[0].tolist()) == " 3  7 12= 29:" + "▒" * 11


@pytest.mark.parametrize("prompt", ["", "3 7=10", "3 7 21=10", "3 7 12=101", "0 7 12=19", "3 7 12", "3 7 12=29:3+"])
def test_what_is_no_problem_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="write 3 numbers of 1 to 20"):
        CountdownPuzzles().request([prompt], torch.arange(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"largest": 1}, "largest is 1; allowed are 2 to 999"),
        ({"max_target": 0}, "max_target is 0"),
        ({"operations": "+^"}, r"operations is '\+\^'"),
        ({"operations": "++"}, "each once"),
        ({"operations": ""}, "one or more"),
    ],
)
def test_settings_that_make_no_problems(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CountdownPuzzles(**settings)  # type: ignore[arg-type]


def test_a_world_without_problems_is_told() -> None:
    source = CountdownPuzzles(num_numbers=4, largest=2, max_target=1, operations="*")  # 1*1*1*1 = 1, in one split only
    with pytest.raises(ValueError, match="none or next to none"):
        for split in ("train", "validation", "test"):
            source.at_split(split).examples(IDS[:1])
