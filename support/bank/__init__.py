"""The task bank: rendered rooms with exact labels, twenty tasks, one small network each, and measured transfers."""

RANDOM = "random"  # the encoder with random weights: measured like a source, never part of the oracle
