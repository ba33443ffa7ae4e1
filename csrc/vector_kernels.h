// The inner loops of the kernels, compiled once for each instruction set; all of them give the same bits.
#ifndef BOXWRIGHT_VECTOR_KERNELS_H
#define BOXWRIGHT_VECTOR_KERNELS_H

#include <cstddef>
#include <cstdint>

#include "decode_math.h"
#include "instruction_set.h"

namespace boxwright {

constexpr int kBlockSize = 16;

// Sixteen boxes of positive area, one array a coordinate. Unused places hold zeros: nothing intersects them.
struct alignas(64) BoxBlock {
    float x1[kBlockSize], y1[kBlockSize], x2[kBlockSize], y2[kBlockSize], area[kBlockSize];
    int32_t next;  // index of the next block of the chain, -1 at the end
};

// How one row of interleaved pixels is resized: output pixel x is a blend of the source pixel that begins at byte
// `offsets[x]` and the one after it. The weights (sum 2048) are stored eight a pixel, (first, second) four times.
struct ColumnPlan {
    const int32_t* offsets;
    const int16_t* weights;
    int32_t count;
    int32_t count_loading_16;  // pixels, from the left, whose 16 bytes from the offset on lie within the row
};

// How two resized rows become one row of the output planes.
struct RowPlan {
    const int16_t* row_a;  // four values a pixel: three channels in units of 1/128 and one to ignore
    const int16_t* row_b;
    int32_t weight_a;  // sum 2048
    int32_t weight_b;
    int32_t count;
    float* planes[3];  // of the source's channels 0, 1, 2
    float scale[3];
    float bias[3];
};

struct VectorKernels {
    // Positions, ascending, of the finite values > threshold; returns how many. `positions` has room for count + 16.
    size_t (*select_above)(const float* values, size_t count, float threshold, uint32_t* positions);

    // The same with a threshold for each value.
    size_t (*select_above_each)(const float* values, const float* thresholds, size_t count, uint32_t* positions);

    // For each factor the logit, or a little less, above which sigmoid(logit) * factor > product_threshold; infinite
    // where no logit can be (or, negative, where every one can).
    void (*raw_thresholds)(const float* factors, size_t count, float product_threshold, float* thresholds);

    // Replaces every value by its sigmoid.
    void (*apply_sigmoid)(float* values, size_t count);

    // The largest finite value, minus infinity where there is none.
    float (*max_finite)(const float* values, size_t count);

    // Softmax of one row; false, and nothing useful written, where a logit is not finite.
    bool (*softmax)(const float* logits, size_t count, float* probabilities);

    // Whether a box of the chain overlaps `box` (of positive `area`) by more than `threshold` (>= 0).
    bool (*is_suppressed)(const BoxBlock* blocks, int32_t first, const Box& box, float area, float threshold,
                          Overlap overlap);

    // One row of source pixels, three bytes each, to `plan.count` resized pixels of four values.
    void (*resize_row)(const uint8_t* row, const ColumnPlan& plan, int16_t* resized);

    // Blends two resized rows to whole grey levels and normalises them.
    void (*blend_rows)(const RowPlan& plan);
};

const VectorKernels& vector_kernels(InstructionSet instruction_set);

namespace plain {
extern const VectorKernels kernels;
}
namespace neon {
extern const VectorKernels kernels;
}
namespace avx2 {
extern const VectorKernels kernels;
}
namespace avx512 {
extern const VectorKernels kernels;
}

}  // namespace boxwright

#endif
