"""What actors without networks ask and are answered, as one buffer each through the codec."""

import numpy as np
from numpy.typing import NDArray

from starling.codec import Octets, decode, encode
from starling.errors import CodecError
from starling.questions import Answer, Question
from starling.types import Columns

_EXTRA, _START = "extra/", "start/"
_INT, _BOOL = np.dtype(np.int64), np.dtype(np.bool_)


def encode_question(question: Question) -> NDArray[np.uint8]:
    """Pack a question; what it does not need is left out."""
    who = [question.actor, question.generation, question.group, question.number, question.newer_than]
    arrays = {"who": np.array(who), "obs": question.obs, "fresh": question.fresh}
    if question.starting.size:
        arrays["starting"] = question.starting
    if question.cut.size:
        arrays |= {"cut": question.cut, "cut_obs": question.cut_obs}
    if question.mask is not None:
        arrays["mask"] = question.mask
    return encode(arrays)


def decode_question(buffer: Octets) -> Question:
    """Return the question; its arrays are read-only views into `buffer`."""
    arrays, _ = decode(buffer)
    match arrays:
        case {"who": who, "obs": obs, "fresh": fresh} if _are(who, _INT, 5) and _are(fresh, _BOOL, len(obs)):
            actor, generation, group, number, newer_than = who.tolist()
            return Question(
                actor=actor,
                generation=generation,
                group=group,
                number=number,
                obs=obs,
                fresh=fresh,
                starting=arrays.get("starting", _NOBODY),
                cut=arrays.get("cut", _NOBODY),
                cut_obs=arrays.get("cut_obs", obs[:0]),
                mask=arrays.get("mask"),
                newer_than=newer_than,
            )
    raise CodecError(f"buffer must hold a question for an action, got arrays {sorted(arrays)}")


def encode_answer(answer: Answer) -> NDArray[np.uint8]:
    """Pack an answer; what it does not have is left out."""
    arrays = {"who": np.array([answer.group, answer.number, answer.version, answer.lost]), "action": answer.action}
    for name, extra in answer.extras.items():
        arrays[_EXTRA + name] = extra
    for name, state in answer.starts.items():
        arrays[_START + name] = state
    optional = {"taken": answer.taken, "value": answer.value, "cut": answer.cut if answer.cut.size else None}
    arrays |= {name: array for name, array in optional.items() if array is not None}
    return encode(arrays)


def decode_answer(buffer: Octets) -> Answer:
    """Return the answer; its arrays are read-only views into `buffer`."""
    arrays, _ = decode(buffer)
    match arrays:
        case {"who": who, "action": action} if _are(who, _INT, 4):
            group, number, version, lost = who.tolist()
            return Answer(
                group=group,
                number=number,
                version=version,
                action=action,
                extras=_under(_EXTRA, arrays),
                taken=arrays.get("taken"),
                value=arrays.get("value"),
                cut=arrays.get("cut", _NO_VALUES),
                starts=_under(_START, arrays),
                lost=bool(lost),
            )
    raise CodecError(f"buffer must hold an answer with an action, got arrays {sorted(arrays)}")


_NOBODY, _NO_VALUES = np.empty(0, np.int64), np.empty(0, np.float32)


def _are(array: NDArray[np.generic], dtype: np.dtype[np.generic], length: int) -> bool:
    return array.dtype == dtype and array.shape == (length,)


def _under(prefix: str, arrays: Columns) -> Columns:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
