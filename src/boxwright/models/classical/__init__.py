"""Training of detectors without a network: boosted cascades and HOG with a linear SVM.

They are numpy, OpenCV and scikit-learn, have no variants and no checkpoints, and so are no families of `models/`.
"""
