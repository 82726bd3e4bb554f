import numpy as np
import torch

from learner.feeds import ReplayFeed, Taken, to_batch
from starling.types import Batch, Sampled, Ticket
from starling.windows import Window


class One:
    """Serves the same windows for ever: sequences of two steps, three frames to a stack."""

    def take(self) -> Sampled:
        columns = {name: np.zeros((2, 4), np.float32) for name in ("action", "reward", "terminated", "truncated")}
        columns |= {"valid": np.ones((2, 4), bool), "learn": np.ones((2, 4), bool), "version": np.ones((2, 4))}
        columns["obs"] = np.arange(5 * 4 * 6, dtype=np.uint8).reshape(5, 4, 6)
        ticket = Ticket(np.zeros(4, np.int64), np.arange(4))
        return Sampled(columns, np.ones(4, np.float32), ticket, {"h": np.ones((4, 7), np.float32)})

    def update_priorities(self, ticket: Ticket, priorities: np.ndarray) -> None:
        pass


def test_columns_that_lie_in_records_become_tensors_of_their_own() -> None:
    columns = One().take().columns
    names = [name for name in columns if name != "obs"]
    records = np.zeros((2, 4), [(name, columns[name].dtype) for name in names])
    records["reward"] = np.arange(8).reshape(2, 4)

    batch = to_batch(
        {"obs": columns["obs"], **{name: records[name] for name in names}},
        np.ones(4, np.float32),
        torch.device("cpu"),
        Window(length=2, burn_in=1, every_obs=True, stack=3),
    )

    assert batch.reward.is_contiguous()
    assert batch.reward.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_batch_of_sequences_has_stacks_recurrent_states_and_what_is_learned_from() -> None:
    feed = ReplayFeed(One(), torch.device("cpu"), Window(length=2, burn_in=1, every_obs=True, stack=3))

    taken = feed.next(version=3)

    assert isinstance(taken, Taken)
    batch: Batch = taken.batch
    assert batch.obs.shape == (3, 4, 3, 6)
    assert batch.obs[2, 1, :, 0].tolist() == [(row * 4 + 1) * 6 for row in (2, 3, 4)]
    assert batch.starts["h"].shape == (4, 7)
    assert list(batch.extras) == ["learn"]
