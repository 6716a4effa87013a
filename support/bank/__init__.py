"""The task bank: rendered rooms with exact labels, twenty tasks, one small network each, and measured transfers."""
