"""What must be true before a run leaves its first trace: checks that need the environment itself."""

from typing import Any

from actors.envs import measure_spec
from cluster.config import Config
from cluster.roles import build_algorithm, build_shard
from starling.errors import check
from starling.metrics import no_clock
from starling.spec import Spec


def refuse_what_cannot_run(config: Config[Any]) -> Spec:
    """Say in one sentence what is wrong: the environment, its actions here, the replay's size, the GPU."""
    spec = measure_spec(config.env)
    build_algorithm(config).networks(spec)
    build_shard(config, spec, 0, no_clock)  # its columns' pages are untouched, so this costs next to nothing
    if config.learner.device == "cuda":
        import torch  # two seconds, only for those who insist on a GPU

        there = torch.cuda.is_available()
        check(there, "learner.device must be auto or cpu where there is no GPU, got cuda")
    return spec
