"""INT8 ranges, placement and the accuracy that they keep."""
