"""One thread for numpy and torch in every process that shares the machine's cores; imports nothing heavy."""

from collections.abc import MutableMapping

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def share_cores(environment: MutableMapping[str, str]) -> None:
    """Set what numpy reads when it is imported; two spinning threads on busy cores halt one another."""
    for name, threads in ONE_THREAD.items():
        environment.setdefault(name, threads)
