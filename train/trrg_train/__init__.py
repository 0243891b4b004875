"""Training for TRRG: phantom data, both stages, evaluation."""
