"""Network -> bytes of a step, recomputation that needs fewer, the plan that fits."""
