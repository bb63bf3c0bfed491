"""Data pipelines and loops that train packs; never imported for inference."""
