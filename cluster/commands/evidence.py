"""`starling evidence PRESET...`: train once per seed, keep every result in a file, and write them up as a page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.board import count, duration, number
from cluster.cli import FAILED, OK
from cluster.commands.options import print_help, wants_help
from cluster.config import load
from cluster.evidence import Ran, Recipe, Runner, outcome, read_seeds, run_command
from cluster.provenance import CHECKOUT, Code, code_version
from cluster.results import ENDED, REACHED, Result, ResultsFile
from cluster.results_page import render
from cluster.run_folder import Run, free_name
from cluster.signals import StopRequest
from starling.config import build, leaves
from starling.errors import check
from starling.flags import Flag, key_of, layers, split

OF_TRAIN = ("run", "dry_run", "quiet", "plain", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceOptions:
    """What is run and where its results go; all other flags are settings, the same for every run."""

    seeds: str = "1..5"
    """1..5 or 1,3,7"""
    results: str = "docs/results.jsonl"
    """file that results are appended to; the page beside it ends in .md"""
    runs: str = "runs"
    """folder of all runs"""
    total_steps: int | None = None
    """the same as --goal.total-steps; spending what was asked for is success"""
    max_minutes: float | None = None
    """the same as --goal.max-minutes"""
    again: bool = False
    """run also what the file already holds"""
    any_commit: bool = False
    """take a result as held whichever commit it is of"""
    render: bool = False
    """write the page, and run nothing"""

    def __post_init__(self) -> None:
        read_seeds(self.seeds)
        check(self.results.endswith(".jsonl"), f"results must be a file ending in .jsonl, got {self.results}")


class Evidence:
    """Runs what is not in the file yet, one run at a time; after each one the file and the page are whole."""

    def __init__(self, options: EvidenceOptions, run: Runner, code: Callable[[], Code]) -> None:
        self._options = options
        self._run = run
        self._code = code  # asked before each run: somebody may commit in between
        self.file = ResultsFile(Path(options.results))

    def result(self, recipe: Recipe, seed: int, stopped: Callable[[], bool]) -> Result:
        """Return the result of a seed: the one in the file, or that of a new run."""
        planned = recipe.planned(seed, self._code())
        if not self._options.again:
            held = [each for each in self.file.read() if planned.repeats(each, self._options.any_commit)]
            if held:
                print(f"{_line(held[-1])}  (already in {self.file.path})", flush=True)
                return held[-1]
        result = self._new(recipe, planned, stopped)
        self.file.append(result)
        self.write_page()
        print(_line(result), flush=True)
        return result

    def write_page(self) -> Path:
        """Write the page beside the file; it appears whole."""
        page = self.file.path.with_suffix(".md")
        unfinished = page.with_name(f".{page.name}")
        unfinished.write_text(render(self.file.read(), self.file.path.name), "utf-8")
        return unfinished.replace(page)

    def _new(self, recipe: Recipe, planned: Result, stopped: Callable[[], bool]) -> Result:
        runs = Path(self._options.runs)
        name = free_name(runs, f"{recipe.stem}-seed-{planned.seed}")
        print(f"{recipe.source} seed {planned.seed}  ->  {runs / name}", flush=True)
        args = [*recipe.arguments(planned.seed), "--quiet", "--runs", str(runs), "--run", name]
        ran: Ran = self._run(args, stopped)
        result = outcome(planned, Run(runs / name), ran)
        if result.result == "interrupted" or (stopped() and result.result not in ENDED):
            raise KeyboardInterrupt  # no result: it is run when evidence is asked for again
        return result


def main(args: list[str], run: Runner = run_command, code: Callable[[], Code] = lambda: code_version(CHECKOUT)) -> int:
    """Run every recipe with every seed; 0 when all of them reached their goal."""
    if wants_help(args):
        what = "Train once per seed, and keep the results. All other flags are settings, as train takes them."
        return print_help(EvidenceOptions(), "evidence", "PRESET|FILE.toml...", what)
    sources, flags = split(args)
    own = [flag for flag in flags if key_of(flag, EvidenceOptions)]
    options = build(EvidenceOptions, *layers(own, EvidenceOptions))
    evidence = Evidence(options, run, code)
    if options.render:
        check(not sources, f"evidence --render must be given no presets, got {' '.join(sources)}")
        print(evidence.write_page())
        return OK
    check(bool(sources), "evidence must be given at least one PRESET or FILE.toml before its flags, got nothing")
    settings = [*_budgets(options), *(flag for flag in flags if flag not in own)]
    recipes = [_recipe(source, settings) for source in sources]  # all of them are read before any is run
    evidence.file.make()
    results = []
    with StopRequest() as stopped:
        for recipe in recipes:
            for seed in read_seeds(options.seeds):
                results.append(evidence.result(recipe, seed, stopped))
                if stopped():
                    raise KeyboardInterrupt
    reached = sum(result.result in REACHED for result in results)
    print(f"{evidence.write_page()}  {reached} of {len(results)} runs did what they were started for")
    return OK if reached == len(results) else FAILED


def _recipe(source: str, settings: list[Flag]) -> Recipe:
    for flag in settings:
        check(flag.key != "seed", "evidence must be given --seeds, got --seed")
        check(flag.key not in OF_TRAIN, f"evidence must be given settings of the run, got {flag.name}")
    config = load(source, settings, also=[key for key, _ in leaves(EvidenceOptions)])
    words = tuple(word for flag in settings for word in (flag.name, *flag.values))
    return Recipe(source=source, flags=words, config=config)


def _budgets(options: EvidenceOptions) -> list[Flag]:
    budgets = {"total-steps": options.total_steps, "max-minutes": options.max_minutes}
    return [Flag(f"--goal.{name}", [str(value)]) for name, value in budgets.items() if value is not None]


def _line(result: Result) -> str:
    parts = [f"{result.preset} seed {result.seed}", result.result]
    if result.return_mean is not None:
        parts.append(f"return {number(result.return_mean)}")
    if result.env_steps is not None and result.train_s is not None:
        parts.append(f"{count(result.env_steps)} steps in {duration(result.train_s)}")
    parts.append(result.error or f"{duration(result.wall_s)} in all")
    return "  ".join(parts)
