"""How far results may differ, a line each with its reason."""

# The same sums of the same float64 numbers in another order.
COCO_METRICS = 1e-6
