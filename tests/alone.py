"""One actor that learns from its own unrolls at once: the gradients topology without any process or delay."""

from dataclasses import dataclass

import numpy as np
import torch

from actors.copies import EnvConfig
from actors.envs import make_copies
from actors.evaluator import Evaluator, EvaluatorConfig
from actors.rollout import Rollout
from learner.config import OptimizerConfig
from learner.optimizers import Optimizers
from param_server.server import ParamServer
from starling.batches import batch_of
from starling.metrics import Meter, no_clock
from starling.networks.forward import build_forward
from starling.networks.nets import LearnerNets
from starling.params import Params
from starling.types import Algorithm, Place

CPU = torch.device("cpu")


@dataclass
class Alone:
    """Plays an unroll, learns from it, and plays on by what it learned."""

    algorithm: Algorithm
    env: EnvConfig
    length: int
    optimizer: OptimizerConfig
    seed: int = 0

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)  # as in a run
        copies = make_copies(self.env)
        self.spec = spec = copies.spec
        algorithm = self.algorithm
        self.acting = algorithm.acting(spec)
        generator = torch.Generator().manual_seed(self.seed)
        self.nets = LearnerNets(algorithm.networks(spec), algorithm.targets(), spec, generator, CPU)
        prefixes = tuple(f"{name}." for name in self.acting)
        self.num_acting = sum(name.startswith(prefixes) for name, _ in self.nets.layout.entries)
        self.optimizers = Optimizers(self.optimizer, algorithm.groups(), self.nets)
        forward = build_forward(self.acting, spec)
        place = Place(0, 1, copies.num_copies)
        self.rollout = Rollout(copies, algorithm, forward, place, np.random.SeedSequence(self.seed))
        judged = make_copies(EnvConfig(id=self.env.id, copies=50, kwargs=self.env.kwargs))
        forward = build_forward(self.acting, spec)
        self.evaluator = Evaluator(EvaluatorConfig(), judged, algorithm, forward, ParamServer(no_clock), no_clock)
        self.updates = self.env_steps = 0

    def learn(self, updates: int) -> None:
        for _ in range(updates):
            self.updates += 1
            self.rollout.load(self.params())
            unroll = self.rollout.collect(self.length, self.updates, Meter(no_clock))
            losses = self.algorithm.losses(self.nets, batch_of([unroll], CPU), None)
            self.optimizers.begin(self.updates)
            assert self.optimizers.step(losses.groups)
            self.nets.follow(self.updates)
            self.env_steps += unroll.num_steps

    def learn_until(self, mean: float, updates: int, every: int = 50) -> float:
        """Learn until the greedy policy is that good, for so many updates at most; return how good it became."""
        reached = -np.inf
        while reached < mean and self.updates < updates:
            self.learn(every)
            reached = self.evaluator.evaluate(self.updates, self.params()).mean
        return reached

    def params(self) -> Params:
        return self.nets.params(self.num_acting)
