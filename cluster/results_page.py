"""Results as a page: a row for each recipe, what is known to be reachable beside what was reached."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from cluster.board import count, duration, number
from cluster.results import Result, current

HEAD = (
    "task",
    "algorithm",
    "recipe",
    "runtime",
    "solved",
    "return",
    "env steps: mean (max)",
    "training: mean (max)",
    "in all: mean (max)",
    "reference",
    "machine",
    "commit",
)
NOTHING = "-"

INTRODUCTION = """\
# Results

Written by `starling evidence` from `{source}`; every run in it is on this page, failed ones too. Each was started by
its recipe and ` --seed N`.

- **solved**: runs in which the mean return of greedy, held-out episodes reached the goal.
- **return**: mean ± standard deviation, over runs, of a run's best evaluation. A run ends when its goal is reached.
- **env steps**, **training**: until the goal, or until the budget was spent; the start-up is left out.
- **in all**: the whole command, start-up and end included.
- **commit**: the last one that changed the code; `+`: files had been changed since.
"""


class Reference(NamedTuple):
    """What others reach, or what cannot be exceeded."""

    score: float
    source: str


REFERENCES = {
    "CartPole-v1": Reference(475.0, "Gymnasium's threshold; 500 is the most"),
    "starling.gridworld:GridWorld": Reference(0.8, "the shortest path, the most without slipping"),
}


def render(results: Sequence[Result], source: str, references: Mapping[str, Reference] = REFERENCES) -> str:
    """Write the page; the same results give the same text."""
    counting, replaced = current(list(results))
    letters = _letters(results)
    blocks = [INTRODUCTION.format(source=source), _table(counting, references, letters, lambda run: run.recipe)]
    if replaced:
        blocks += [
            "## Code that was replaced\n\nThese seeds were run again by later code.\n",
            _table(replaced, references, letters, lambda run: (run.recipe, run.commit, run.dirty)),
        ]
    if failures := [result for result in results if result.error]:
        blocks += ["## Runs that failed\n", "".join(f"- `{run.command}`: {_one_line(run.error)}\n" for run in failures)]
    blocks += ["## Machines\n", "".join(f"- {letter}: {text}\n" for text, letter in letters.items())]
    return "\n".join(blocks)


def _table(
    results: Sequence[Result],
    references: Mapping[str, Reference],
    letters: Mapping[str, str],
    group: Callable[[Result], Any],
) -> str:
    groups: dict[Any, list[Result]] = {}
    for result in sorted(results, key=lambda run: (run.env, run.algorithm, run.recipe)):
        groups.setdefault(group(result), []).append(result)
    rows = [HEAD, ("---",) * len(HEAD), *(_row(runs, references, letters) for runs in groups.values())]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def _row(runs: Sequence[Result], references: Mapping[str, Reference], letters: Mapping[str, str]) -> tuple[str, ...]:
    run, reference = runs[-1], references.get(runs[-1].env)
    solved = sum(each.result == "goal" for each in runs)
    return (
        run.env,
        run.algorithm,
        f"`{run.recipe}`",
        run.runtime,
        f"{solved}/{len(runs)}" if run.goal is not None else f"{len(runs)} runs",
        _spread(_known(each.return_mean for each in runs)) + (f" (goal {number(run.goal)})" if run.goal else ""),
        _mean_and_max(_known(each.env_steps for each in runs), lambda value: count(round(value))),
        _mean_and_max(_known(each.train_s for each in runs), duration),
        _mean_and_max([each.wall_s for each in runs], duration),
        f"{number(reference.score)} ({reference.source})" if reference else NOTHING,
        ", ".join(sorted({letters[_machine(each)] for each in runs})),
        ", ".join(dict.fromkeys(_commit(each) for each in runs)),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    return number(mean(values)) + (f" ± {number(stdev(values))}" if len(values) > 1 else "")


def _mean_and_max(values: Sequence[float], write: Callable[[float], str]) -> str:
    return f"{write(mean(values))} ({write(max(values))})" if values else NOTHING


def _commit(run: Result) -> str:
    return (run.commit[:9] if run.commit else "not a checkout") + "+" * run.dirty


def _machine(run: Result) -> str:
    has = run.machine
    versions = ", ".join(f"{name} {has[name]}" for name in ("python", "torch", "ray", "gymnasium") if has.get(name))
    return f"{has.get('cpu')}, {has.get('cores')} cores, {has.get('memory_gib')} GiB; {versions}"


def _letters(results: Sequence[Result]) -> dict[str, str]:
    """Name machines A, B, ... in the order in which they came."""
    machines = dict.fromkeys(_machine(run) for run in results)
    return {text: chr(ord("A") + index) if index < 26 else f"A{index}" for index, text in enumerate(machines)}


def _one_line(text: str) -> str:
    return " ".join(text.split())
