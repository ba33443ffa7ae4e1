"""What a deployed box needs: the maths, the types and the kernels, on numpy and OpenCV alone."""
