"""Speed and memory, measured: `python -m benchmarks` runs what takes minutes, `--large` also what takes longer."""
