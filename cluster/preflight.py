"""What must be true before a run leaves its first trace: checks that need the environment itself."""

from typing import Any

from actors.envs import measure_spec
from cluster.config import Config
from cluster.roles import build_algorithm, build_shard
from starling.metrics import no_clock


def refuse_what_cannot_run(config: Config[Any]) -> None:
    """Raise the sentence that a person needs: the environment, its spaces under this algorithm, the replay's size."""
    spec = measure_spec(config.env)
    build_algorithm(config).networks(spec)
    build_shard(config, spec, 0, no_clock)  # its columns' pages are untouched, so this costs next to nothing
