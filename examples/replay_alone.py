"""The replay service without a learner: two shards, steps in, prioritized windows out."""

import time

import numpy as np

from replay_server.config import ReplayConfig
from replay_server.local import LocalReplay
from replay_server.router import Router
from replay_server.shard import ReplayShard
from starling.recorded import Recorded, unrolls
from starling.spec import ArraySpec, Spec
from starling.windows import Window

spec = Spec(env="mine", obs=ArraySpec((4,), "float32"), action=ArraySpec((), "int64"), num_actions=2)
config = ReplayConfig(capacity=10_000, min_windows=100, samples_per_insert=0.0)  # 0: nobody waits for anybody
rng = np.random.default_rng(0)
shards = [ReplayShard(config, spec, Window(length=3), {}, rng, time.monotonic) for _ in range(2)]
router = Router(LocalReplay(shards), config, rng, time.monotonic, batch_size=32)

steps = 5_000
columns = {"obs": rng.random((steps, 4), np.float32), "action": rng.integers(2, size=steps)}
columns |= {"reward": rng.random(steps, np.float32), "truncated": np.zeros(steps, bool)}
columns |= {"terminated": rng.random(steps) < 0.02}
finals = rng.random((columns["terminated"].sum(), 4), np.float32)  # the observation after each episode's last step
for unroll in unrolls(Recorded.of(columns, finals)):
    shards[unroll.actor % 2].insert(unroll)  # a stream stays on its shard

sampled = router.take()  # or, while there is nothing to take, a sentence that says why
router.update_priorities(sampled.ticket, sampled.columns["reward"].sum(0))  # [32]: whatever matters to you
print({name: array.shape for name, array in sampled.columns.items()}, sampled.weights.shape)
