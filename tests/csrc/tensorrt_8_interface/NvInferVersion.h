// The release of TensorRT that NvInfer.h beside it was written down from.
#ifndef BOXWRIGHT_TENSORRT_8_VERSION_H
#define BOXWRIGHT_TENSORRT_8_VERSION_H

#define NV_TENSORRT_MAJOR 8
#define NV_TENSORRT_MINOR 5
#define NV_TENSORRT_PATCH 3

#endif
