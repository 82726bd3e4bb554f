"""How many threads numpy's and torch's libraries take unasked: one, since roles share the cores; imports nothing."""

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
"""Environment variables that are read when numpy is imported; the learner's threads are a setting of their own."""
