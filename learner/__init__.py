"""The learner: turns sampled windows into updates, priorities and new parameters."""
