"""`starling export RUN --numpy|--onnx`: a run's policy as a file that needs no Starling."""

from dataclasses import dataclass
from pathlib import Path

from cluster.checkpoints import Which
from cluster.commands.options import only, print_help, read, wants_help
from starling.errors import check


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What is written, and where."""

    numpy: bool = False
    """write arrays (.npz), and a loader that needs numpy alone"""
    onnx: bool = False
    """write an ONNX model; needs the packages onnx and onnxscript"""
    output: str | None = None
    """file; default: policy.npz or policy.onnx in the run's folder"""
    which: Which = "best"
    """checkpoint"""
    runs: str = "runs"
    """folder of all runs"""

    def __post_init__(self) -> None:
        got = "both" if self.numpy and self.onnx else "neither"
        check(self.numpy != self.onnx, f"export must be given one of --numpy and --onnx, got {got}")
        suffix = ".npz" if self.numpy else ".onnx"
        given = self.output
        check(given is None or given.endswith(suffix), f"output must be a file ending in {suffix}, got {given}")


def main(args: list[str]) -> int:
    """Export, and name the files."""
    if wants_help(args):
        return print_help(ExportOptions(numpy=True), "export", "RUN", "Write a run's policy as a file of its own.")
    before, options = read(args, ExportOptions)
    name = only(before, "export", "RUN")

    from cluster.api import load_run
    from cluster.export import export_numpy, export_onnx

    run = load_run(name, options.which, options.runs)
    output = Path(options.output) if options.output else run.path / ("policy.npz" if options.numpy else "policy.onnx")
    if options.onnx:
        export_onnx(run.policy, output)
        print(output)
    else:
        print(f"{output}, read by {export_numpy(run.policy, output)}")
    return 0
