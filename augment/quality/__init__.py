"""The quality gate: whether an answer may become a vector, and if not, why."""
