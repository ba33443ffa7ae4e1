// Numbers of heads, in either precision, and candidates as numbers.
#ifndef BOXWRIGHT_CUDA_NUMBERS_H
#define BOXWRIGHT_CUDA_NUMBERS_H

#include <cstdint>

#include "parameters.h"
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

// Of the steps below, which run on a GPU and, for the tests, on the CPU.
#if defined(__CUDACC__)
#define BOXWRIGHT_DEVICE static __device__ __forceinline__
#define BOXWRIGHT_UNROLL _Pragma("unroll")
#else
#define BOXWRIGHT_DEVICE static inline
#define BOXWRIGHT_UNROLL
#endif

namespace boxwright {
namespace cuda {

// A float16 number as it lies in memory.
struct Half {
    uint16_t bits;
};

BOXWRIGHT_DEVICE float to_float(float value) { return value; }

BOXWRIGHT_DEVICE float to_float(Half value) {
#if defined(__CUDACC__)
    return __half2float(__ushort_as_half(value.bits));
#else
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t exponent = (value.bits >> 10) & 0x1Fu, mantissa = value.bits & 0x3FFu;
    if (exponent == 0x1F) return float_of_bits(sign | 0x7F800000u | mantissa << 13);
    if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    const float magnitude = static_cast<float>(mantissa) * power_of_two(-24);
    return sign != 0 ? -magnitude : magnitude;
#endif
}

BOXWRIGHT_DEVICE float load(const DeviceHead& head, size_t index) {
    return head.type == HeadType::float32 ? static_cast<const float*>(head.data)[index]
                                          : to_float(static_cast<const Half*>(head.data)[index]);
}

// A candidate as one number, whose ascending order is the rank: score descending, then class, then anchor.
BOXWRIGHT_DEVICE uint64_t key_of(float score, uint32_t class_index, uint32_t anchor, uint32_t num_anchors) {
    return static_cast<uint64_t>(~float_bits(score)) << 32 | (class_index * num_anchors + anchor);
}
BOXWRIGHT_DEVICE float score_of_key(uint64_t key) { return float_of_bits(~static_cast<uint32_t>(key >> 32)); }
BOXWRIGHT_DEVICE uint32_t pair_of_key(uint64_t key) { return static_cast<uint32_t>(key); }

BOXWRIGHT_DEVICE bool is_threshold(float value) { return value >= 0.0f && value <= 1.0f; }

}  // namespace cuda
}  // namespace boxwright

#endif
