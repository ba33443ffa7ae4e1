"""Detectors in PyTorch, one file a family; the file name is the registry."""
