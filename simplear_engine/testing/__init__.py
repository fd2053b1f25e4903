"""Things that tests, benchmarks and curious users need and the engine itself never does."""
