"""One file an engine; `Detector` runs them all."""
