"""How far results may differ, a line each with its reason."""

# The same sums of the same float64 numbers in another order.
COCO_METRICS = 1e-6

# How close to a tie or a threshold implementations of DecodeNMS may decide either way (the design's number).
DECISION = 1e-6

# Of a decoded coordinate, relative to the box's largest: exponentials in float32 are exact within 2e-7 in numpy and
# 1e-7 in the kernels, and a few roundings of 6e-8 follow.
BOX_COORDINATES = 5e-7

# Of outputs of a network of a few layers, values up to 20, in float32: engines sum in other orders (1e-6 relative).
ENGINE_TENSORS = 5e-5

# Of weights after a few optimizer steps, of a run that was killed and resumed against one that was not: the same sums,
# which threads may split otherwise; Adam's division turns such differences into up to a step's thousandth.
RESUMED_WEIGHTS = 1e-5

# Of raw heads of YOLOX, which span about 10, in another engine's float32 (the bound that the project set itself).
RAW_HEADS = 1e-3

# Of a resized pixel, before it is normalised: roundings of the bilinear blend differ between implementations.
GREY_LEVELS = 1

# Of a real network's detections on different engines in float32, in pixels of the image and in score: a hundred
# layers of sums in other orders.
REAL_MODEL_BOXES = 2e-2
REAL_MODEL_SCORES = 1e-4

# Of AP and AP50 on 80 images against an independent program's, which does not clip boxes to the image, for one.
REFERENCE_MAP = 2e-3
# The C++ SDK and Python on one engine and one image: the same kernels, and JSON with four and six decimals; the bound
# of 1e-3 is the promise that docs/cpp.md makes.
SDK_BOXES = 1e-3
SDK_SCORES = 1e-5
# Of AP50 on 80 images against OpenCV's reader of Darknet files (the bound that the project set itself).
OPENCV_MAP50 = 4e-3

# Of imported weights' detections against torchvision's on the same pixels, in pixels of the image and in score (the
# bound that the project set itself).
IMPORTED_BOXES = 1e-3
IMPORTED_SCORES = 1e-3
# Of a pixel, of 255, resized in float32 by OpenCV against PyTorch: they round the place that it comes from otherwise.
FLOAT_RESIZE = 0.02

# Of a graph that resizes by itself, against OpenCV's resize of bytes: another grey level in so many of the pixels, the
# weights being rounded from exact positions and not from float32's; cubic weights are whole numbers in OpenCV alone.
EMBEDDED_GREY_LEVELS = 1
EMBEDDED_PIXELS = 2e-2
# Of pixels resized in float32 and normalised to about 1: engines round the position of a pixel (up to 300) to float32.
EMBEDDED_VALUES = 5e-5
# Of boxes, in pixels of the image, and scores behind it: single grey levels on networks of random weights.
EMBEDDED_BOXES = 0.5
EMBEDDED_SCORES = 5e-3
# Of an SVM's margins on HOG, in standard operators: OpenCV computes angles to about 0.3 degrees of a bin's 20, and of
# two channels whose gradients are equally long another one may be taken (seen: 0.005 on ONNX Runtime, 0.016 on
# OpenVINO).
HOG_MARGINS = 3e-2

# Of a loss in float32 against its formulas in float64: means of thousands of terms, and an epsilon in the overlaps.
LOSSES = 1e-4

# Mean error of the raw heads of a random network of nine layers in INT8, as a part of their mean magnitude.
INT8_HEADS = 0.06
