"""What must be true before a run leaves its first trace: checks that need the environment itself."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from actors.envs import measure_spec
from cluster.budget import Plan, available_bytes, free_shm, plan_memory, refuse_what_does_not_fit
from cluster.config import Config, LockstepRun, QueueRun, ReplayRun
from cluster.roles import build_algorithm
from starling.errors import check
from starling.spec import Spec


class Checked(NamedTuple):
    """What was learned of a run that can begin."""

    spec: Spec
    plan: Plan


def refuse_what_cannot_run(config: Config[Any]) -> Checked:
    """Say in one sentence what is wrong: the environment, its actions here, the replay's size, the GPU."""
    spec = measure_spec(config.env)
    build_algorithm(config).networks(spec)
    plan = plan_memory(config, spec)
    refuse_what_does_not_fit(plan, available_bytes(), free_shm())
    insisting = [section for section, device in _devices(config).items() if device == "cuda"]
    if insisting:
        import torch  # two seconds, only for those who insist on a GPU

        there = torch.cuda.is_available()
        check(there, f"{insisting[0]}.device must be auto or cpu where there is no GPU, got cuda")
    return Checked(spec, plan)


def _devices(config: Config[Any]) -> Mapping[str, str]:
    """Return which device each section that is used asks for."""
    if not isinstance(config, ReplayRun | QueueRun | LockstepRun):
        return {}
    if config.inference.placement == "local":
        return {"learner": config.learner.device}
    return {"learner": config.learner.device, "inference": config.inference.device}
