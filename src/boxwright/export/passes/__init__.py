"""Graph passes, one file each with `run(model) -> changed`."""
