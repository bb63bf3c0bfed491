"""Pure functions over pytrees: no files, no threads, no clocks, no global state."""
