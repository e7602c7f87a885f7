"""The whole system on a simulated clock: real coverage, training and bot code, in passes of 60 simulated seconds."""
