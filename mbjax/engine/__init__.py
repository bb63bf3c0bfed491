"""The shell around the pure core: device memory, compiled programs, requests."""
