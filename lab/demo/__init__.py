"""`make demo`: the main job on real parts, step by step, each step saying what it checked."""
