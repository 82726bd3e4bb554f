"""The command line: finds the command, runs it, and turns whatever goes wrong into one sentence and an exit code."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from cluster.cores import share_cores
from cluster.user_folder import append_to_path
from starling.errors import ClusterError, StarlingError, UsageError
from starling.failpoints import VARIABLE, arm

OK, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

COMMANDS = {
    "train": ("cluster.commands.train", "PRESET|FILE.toml [flags]", "train, and keep the run in a folder"),
    "eval": ("cluster.commands.eval", "RUN [flags]", "play a run's best parameters greedily"),
    "evidence": (
        "cluster.commands.evidence",
        "PRESET|FILE.toml... [flags]",
        "train once per seed, and keep the results",
    ),
    "doctor": ("cluster.commands.doctor", "[flags]", "say whether this machine is fit for a run"),
    "presets": ("cluster.commands.presets", "[NAME]", "list the presets, or show one as TOML"),
    "ls": ("cluster.commands.ls", "[flags]", "list the runs"),
    "export": ("cluster.commands.export", "RUN --numpy|--onnx", "write a run's policy for use without Starling"),
    "bench": ("cluster.commands.bench", "NAME|all [flags]", "measure each role beside what the machine allows"),
    "replay": ("cluster.commands.replay", "RUN [flags]", "look into a run's replay; import and export recorded data"),
    "show": ("cluster.commands.show", "RUN [flags]", "say what a run is and how far it is"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    share_cores(os.environ)
    append_to_path(os.getcwd())
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        arm(os.environ.get(VARIABLE, ""))
        return _dispatch(args)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # we are as good as gone: another one must not end in a traceback
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # a person is at the other end: one sentence, and the traceback only on request
        if debug:
            traceback.print_exc()
        else:
            print(f"starling: {_sentence(error)}", file=sys.stderr)
        return _exit_code(error)


def usage() -> str:
    """Return the short help; it costs no import of anything heavy."""
    rows = [(f"starling {name} {arguments}", what) for name, (_, arguments, what) in COMMANDS.items()]
    width = max(len(call) for call, _ in rows)
    lines = [f"  {call:<{width}}  {what}" for call, what in rows]
    return "\n".join(
        [
            "Starling: distributed actor-learner reinforcement learning.",
            "",
            *lines,
            "",
            "starling COMMAND --help lists its flags; --debug shows the traceback of an error; --version the version.",
            "try: starling train cartpole",
        ]
    )


def _dispatch(args: list[str]) -> int:
    name = args[0] if args else "--help"
    if name in ("--help", "-h", "help"):
        print(usage())
        return OK
    if name == "--version":
        from cluster.provenance import DISTRIBUTION, installed

        print(f"starling {installed(DISTRIBUTION) or '(not installed)'}")
        return OK
    if name not in COMMANDS:
        from starling.config import did_you_mean, shown

        raise UsageError(
            f"command must be one of {', '.join(COMMANDS)}, got {shown(name)}{did_you_mean(name, COMMANDS)}"
        )
    if name == "train":
        os.umask(0o077)  # what a run holds is for its owner alone
    command: Callable[[list[str]], int] = import_module(COMMANDS[name][0]).main
    return command(args[1:])


def _sentence(error: Exception) -> str:
    if isinstance(error, StarlingError):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {' '.join(str(error).split())}; this is a mistake of ours, --debug shows where"


def _exit_code(error: Exception) -> int:
    if isinstance(error, UsageError):
        return USAGE
    return UNREACHABLE if isinstance(error, ClusterError) else FAILED


if __name__ == "__main__":
    sys.exit(main())
