"""Programs of a GPU, which Triton compiles: imported where they are used, as for each there is a way without it."""
