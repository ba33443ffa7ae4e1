// The bodies of VectorKernels, included by one file for each instruction set with BOXWRIGHT_ISA naming its namespace.
//
// Most loops are plain C++ over sixteen lanes, which compilers turn into the vectors of the instruction set they are
// told to use. Intrinsics stand only where they do not manage: compaction and the byte shuffles of the letterbox.
// As in decode_math.h, nothing of the standard library is used here.
#include "vector_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace boxwright {
namespace BOXWRIGHT_ISA {
namespace {

// ---- selection ----

[[maybe_unused]] size_t select_above_one_by_one(const float* values, size_t begin, size_t end, float threshold,
                                                uint32_t* positions, size_t selected) {
    for (size_t i = begin; i < end; ++i) {
        positions[selected] = static_cast<uint32_t>(i);
        selected += (values[i] > threshold) & (values[i] <= kMaxFinite);
    }
    return selected;
}

#if defined(__AVX512F__)

// The mask of the lanes that are left at the end of an array.
__mmask16 lanes_left(size_t count) { return static_cast<__mmask16>(count >= 16 ? 0xFFFF : (1u << count) - 1u); }

size_t append_selected(__m512 values, __mmask16 above, size_t begin, uint32_t* positions, size_t selected) {
    const __mmask16 mask = _mm512_mask_cmp_ps_mask(above, values, _mm512_set1_ps(kMaxFinite), _CMP_LE_OQ);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i indices = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(begin)));
    _mm512_storeu_si512(positions + selected, _mm512_maskz_compress_epi32(mask, indices));
    return selected + static_cast<size_t>(__builtin_popcount(mask));
}

size_t select_above(const float* values, size_t count, float threshold, uint32_t* positions) {
    const __m512 limit = _mm512_set1_ps(threshold);
    size_t selected = 0, i = 0;
    for (; i + 64 <= count; i += 64) {
        const __m512 a = _mm512_loadu_ps(values + i), b = _mm512_loadu_ps(values + i + 16);
        const __m512 c = _mm512_loadu_ps(values + i + 32), d = _mm512_loadu_ps(values + i + 48);
        const __mmask16 above_a = _mm512_cmp_ps_mask(a, limit, _CMP_GT_OQ);
        const __mmask16 above_b = _mm512_cmp_ps_mask(b, limit, _CMP_GT_OQ);
        const __mmask16 above_c = _mm512_cmp_ps_mask(c, limit, _CMP_GT_OQ);
        const __mmask16 above_d = _mm512_cmp_ps_mask(d, limit, _CMP_GT_OQ);
        if ((above_a | above_b | above_c | above_d) == 0) continue;
        selected = append_selected(a, above_a, i, positions, selected);
        selected = append_selected(b, above_b, i + 16, positions, selected);
        selected = append_selected(c, above_c, i + 32, positions, selected);
        selected = append_selected(d, above_d, i + 48, positions, selected);
    }
    for (; i < count; i += 16) {
        const __mmask16 present = lanes_left(count - i);
        const __m512 a = _mm512_maskz_loadu_ps(present, values + i);
        const __mmask16 above = _mm512_mask_cmp_ps_mask(present, a, limit, _CMP_GT_OQ);
        if (above) selected = append_selected(a, above, i, positions, selected);
    }
    return selected;
}

#elif defined(__AVX2__)

size_t append_selected(__m256 values, __m256 above, size_t begin, uint32_t* positions, size_t selected) {
    const __m256 finite = _mm256_cmp_ps(values, _mm256_set1_ps(kMaxFinite), _CMP_LE_OQ);
    unsigned mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_and_ps(above, finite)));
    for (; mask != 0; mask &= mask - 1) {
        positions[selected++] = static_cast<uint32_t>(begin) + static_cast<uint32_t>(__builtin_ctz(mask));
    }
    return selected;
}

size_t select_above(const float* values, size_t count, float threshold, uint32_t* positions) {
    const __m256 limit = _mm256_set1_ps(threshold);
    size_t selected = 0, i = 0;
    for (; i + 32 <= count; i += 32) {
        const __m256 a = _mm256_loadu_ps(values + i), b = _mm256_loadu_ps(values + i + 8);
        const __m256 c = _mm256_loadu_ps(values + i + 16), d = _mm256_loadu_ps(values + i + 24);
        const __m256 above_a = _mm256_cmp_ps(a, limit, _CMP_GT_OQ), above_b = _mm256_cmp_ps(b, limit, _CMP_GT_OQ);
        const __m256 above_c = _mm256_cmp_ps(c, limit, _CMP_GT_OQ), above_d = _mm256_cmp_ps(d, limit, _CMP_GT_OQ);
        const __m256 any = _mm256_or_ps(_mm256_or_ps(above_a, above_b), _mm256_or_ps(above_c, above_d));
        if (_mm256_testz_ps(any, any)) continue;
        selected = append_selected(a, above_a, i, positions, selected);
        selected = append_selected(b, above_b, i + 8, positions, selected);
        selected = append_selected(c, above_c, i + 16, positions, selected);
        selected = append_selected(d, above_d, i + 24, positions, selected);
    }
    for (; i + 8 <= count; i += 8) {
        const __m256 a = _mm256_loadu_ps(values + i);
        selected = append_selected(a, _mm256_cmp_ps(a, limit, _CMP_GT_OQ), i, positions, selected);
    }
    return select_above_one_by_one(values, i, count, threshold, positions, selected);
}

#elif defined(__ARM_NEON)

size_t select_above(const float* values, size_t count, float threshold, uint32_t* positions) {
    const float32x4_t limit = vdupq_n_f32(threshold);
    size_t selected = 0, i = 0;
    for (; i + 16 <= count; i += 16) {
        const uint32x4_t above_a = vcgtq_f32(vld1q_f32(values + i), limit);
        const uint32x4_t above_b = vcgtq_f32(vld1q_f32(values + i + 4), limit);
        const uint32x4_t above_c = vcgtq_f32(vld1q_f32(values + i + 8), limit);
        const uint32x4_t above_d = vcgtq_f32(vld1q_f32(values + i + 12), limit);
        if (vmaxvq_u32(vorrq_u32(vorrq_u32(above_a, above_b), vorrq_u32(above_c, above_d))) == 0) continue;
        selected = select_above_one_by_one(values, i, i + 16, threshold, positions, selected);
    }
    return select_above_one_by_one(values, i, count, threshold, positions, selected);
}

#else

size_t select_above(const float* values, size_t count, float threshold, uint32_t* positions) {
    return select_above_one_by_one(values, 0, count, threshold, positions, 0);
}

#endif

#if defined(__AVX512F__)

size_t select_above_each(const float* values, const float* thresholds, size_t count, uint32_t* positions) {
    size_t selected = 0, i = 0;
    for (; i + 64 <= count; i += 64) {
        __m512 four[4];
        __mmask16 above[4];
        for (int k = 0; k < 4; ++k) {
            four[k] = _mm512_loadu_ps(values + i + 16 * k);
            above[k] = _mm512_cmp_ps_mask(four[k], _mm512_loadu_ps(thresholds + i + 16 * k), _CMP_GT_OQ);
        }
        if ((above[0] | above[1] | above[2] | above[3]) == 0) continue;
        for (int k = 0; k < 4; ++k) {
            if (above[k]) {
                selected = append_selected(four[k], above[k], i + 16 * static_cast<size_t>(k), positions, selected);
            }
        }
    }
    for (; i < count; i += 16) {
        const __mmask16 present = lanes_left(count - i);
        const __m512 a = _mm512_maskz_loadu_ps(present, values + i);
        const __m512 limit = _mm512_maskz_loadu_ps(present, thresholds + i);
        const __mmask16 above = _mm512_mask_cmp_ps_mask(present, a, limit, _CMP_GT_OQ);
        if (above) selected = append_selected(a, above, i, positions, selected);
    }
    return selected;
}

#elif defined(__AVX2__)

size_t select_above_each(const float* values, const float* thresholds, size_t count, uint32_t* positions) {
    size_t selected = 0, i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256 a = _mm256_loadu_ps(values + i);
        const __m256 above = _mm256_cmp_ps(a, _mm256_loadu_ps(thresholds + i), _CMP_GT_OQ);
        if (!_mm256_testz_ps(above, above)) selected = append_selected(a, above, i, positions, selected);
    }
    for (; i < count; ++i) {
        positions[selected] = static_cast<uint32_t>(i);
        selected += (values[i] > thresholds[i]) & (values[i] <= kMaxFinite);
    }
    return selected;
}

#else

size_t select_above_each(const float* values, const float* thresholds, size_t count, uint32_t* positions) {
    size_t selected = 0;
    for (size_t i = 0; i < count; ++i) {
        positions[selected] = static_cast<uint32_t>(i);
        selected += (values[i] > thresholds[i]) & (values[i] <= kMaxFinite);
    }
    return selected;
}

#endif

// ---- activation ----

void raw_thresholds(const float* factors, size_t count, float product_threshold, float* thresholds) {
    const float lowered_product = product_threshold * (1.0f - 8e-6f);
    for (size_t i = 0; i < count; ++i) thresholds[i] = raw_threshold(factors[i], lowered_product);
}

void apply_sigmoid(float* values, size_t count) {
    for (size_t i = 0; i < count; ++i) values[i] = sigmoid(values[i]);
}

// The larger of two numbers where the second is kept unless it is finite and larger.
BOXWRIGHT_HD float larger_finite(float current, float value) {
    const bool is_better = (value > current) & (value <= kMaxFinite);
    return is_better ? value : current;
}

float max_finite(const float* values, size_t count) {
    float lanes[kBlockSize];
    for (int lane = 0; lane < kBlockSize; ++lane) lanes[lane] = -__builtin_inff();
    size_t i = 0;
    for (; i + kBlockSize <= count; i += kBlockSize) {
        for (size_t lane = 0; lane < kBlockSize; ++lane) lanes[lane] = larger_finite(lanes[lane], values[i + lane]);
    }
    for (size_t lane = 0; i + lane < count; ++lane) lanes[lane] = larger_finite(lanes[lane], values[i + lane]);
    for (int half = kBlockSize / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) lanes[lane] = larger(lanes[lane], lanes[lane + half]);
    }
    return lanes[0];
}

bool all_finite(const float* values, size_t count) {
    int32_t bad = 0;
    for (size_t i = 0; i < count; ++i) bad |= !is_finite(values[i]);
    return bad == 0;
}

// The sum is taken in sixteen lanes and then as a tree, so that it is the same for every instruction set.
bool softmax(const float* logits, size_t count, float* probabilities) {
    if (!all_finite(logits, count)) return false;
    const float maximum = max_finite(logits, count);
    for (size_t i = 0; i < count; ++i) probabilities[i] = exponential(logits[i] - maximum);
    float lanes[kBlockSize] = {};
    size_t i = 0;
    for (; i + kBlockSize <= count; i += kBlockSize) {
        for (size_t lane = 0; lane < kBlockSize; ++lane) lanes[lane] += probabilities[i + lane];
    }
    for (size_t lane = 0; i + lane < count; ++lane) lanes[lane] += probabilities[i + lane];
    for (int half = kBlockSize / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    for (size_t k = 0; k < count; ++k) probabilities[k] = probabilities[k] / lanes[0];
    return true;
}

// ---- suppression ----

template <Overlap kind>
BOXWRIGHT_HD bool any_overlaps(const BoxBlock& block, const Box& box, float area, float threshold) {
    int32_t hits = 0;
    for (int lane = 0; lane < kBlockSize; ++lane) {
        const Box kept = {block.x1[lane], block.y1[lane], block.x2[lane], block.y2[lane]};
        hits |= overlap_of(kept, block.area[lane], box, area, kind) > threshold;
    }
    return hits != 0;
}

template <Overlap kind>
bool chain_overlaps(const BoxBlock* blocks, int32_t first, const Box& box, float area, float threshold) {
    for (int32_t index = first; index >= 0; index = blocks[index].next) {
        if (any_overlaps<kind>(blocks[index], box, area, threshold)) return true;
    }
    return false;
}

bool is_suppressed(const BoxBlock* blocks, int32_t first, const Box& box, float area, float threshold,
                   Overlap overlap) {
    if (overlap == Overlap::iou) return chain_overlaps<Overlap::iou>(blocks, first, box, area, threshold);
    return chain_overlaps<Overlap::diou>(blocks, first, box, area, threshold);
}

// ---- letterbox ----

// OpenCV's bilinear resize of bytes, to the bit: the blend of two pixels keeps 7 of the 11 bits of its weights, that
// of two rows 2, which are then rounded away.
BOXWRIGHT_HD int16_t blend_pixels(int32_t first, int32_t second, const int16_t* weights) {
    return static_cast<int16_t>((first * weights[0] + second * weights[1]) >> 4);
}

BOXWRIGHT_HD int32_t blend_levels(int32_t a, int32_t b, int32_t weight_a, int32_t weight_b) {
    const int32_t level = (((a * weight_a) >> 16) + ((b * weight_b) >> 16) + 2) >> 2;
    return level > 255 ? 255 : level;
}

void resize_pixels(const uint8_t* row, const ColumnPlan& plan, int32_t begin, int16_t* resized) {
    for (int32_t x = begin; x < plan.count; ++x) {
        const uint8_t* pixel = row + plan.offsets[x];
        const int16_t* weights = plan.weights + 8 * x;
        for (int channel = 0; channel < 3; ++channel) {
            resized[4 * x + channel] = blend_pixels(pixel[channel], pixel[channel + 3], weights);
        }
        resized[4 * x + 3] = 0;
    }
}

void blend_pixels_of_rows(const RowPlan& plan, int32_t begin) {
    for (int channel = 0; channel < 3; ++channel) {
        float* plane = plan.planes[channel];
        const float scale = plan.scale[channel], bias = plan.bias[channel];
        const int16_t *row_a = plan.row_a + channel, *row_b = plan.row_b + channel;
        for (int32_t x = begin; x < plan.count; ++x) {
            const int32_t level = blend_levels(row_a[4 * x], row_b[4 * x], plan.weight_a, plan.weight_b);
            plane[x] = static_cast<float>(level) * scale + bias;
        }
    }
}

#if defined(__AVX2__)

// Two pixels, one a half: the bytes of a pixel and its neighbour become (first, second) pairs of 16 bits, which are
// blended to four 32-bit numbers.
BOXWRIGHT_HD __m256i blend_two_pixels(const uint8_t* row, const int32_t* offsets, const int16_t* weights) {
    const __m256i pair_up = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                             0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + offsets[0]));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + offsets[1]));
    const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    const __m256i factors = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
    return _mm256_srai_epi32(_mm256_madd_epi16(_mm256_shuffle_epi8(bytes, pair_up), factors), 4);
}

void resize_row(const uint8_t* row, const ColumnPlan& plan, int16_t* resized) {
    int32_t x = 0;
    for (; x + 4 <= plan.count_loading_16; x += 4) {
        const __m256i first = blend_two_pixels(row, plan.offsets + x, plan.weights + 8 * x);
        const __m256i second = blend_two_pixels(row, plan.offsets + x + 2, plan.weights + 8 * x + 16);
        // Packing works on halves: pixels 0, 2, 1, 3.
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(resized + 4 * x), packed);
    }
    resize_pixels(row, plan, x, resized);
}

BOXWRIGHT_HD __m256i blend_four_pixels(const int16_t* row_a, const int16_t* row_b, __m256i weight_a, __m256i weight_b) {
    const __m256i a = _mm256_mulhi_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row_a)), weight_a);
    const __m256i b = _mm256_mulhi_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row_b)), weight_b);
    const __m256i sum = _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_set1_epi16(2));
    return _mm256_min_epi16(_mm256_srai_epi16(sum, 2), _mm256_set1_epi16(255));
}

BOXWRIGHT_HD void store_normalised(float* plane, __m256i levels, float scale, float bias) {
    const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(levels), _mm256_set1_ps(scale));
    _mm256_storeu_ps(plane, _mm256_add_ps(product, _mm256_set1_ps(bias)));
}

void blend_rows(const RowPlan& plan) {
    const __m256i weight_a = _mm256_set1_epi16(static_cast<int16_t>(plan.weight_a));
    const __m256i weight_b = _mm256_set1_epi16(static_cast<int16_t>(plan.weight_b));
    int32_t x = 0;
    for (; x + 8 <= plan.count; x += 8) {
        const __m256i low = blend_four_pixels(plan.row_a + 4 * x, plan.row_b + 4 * x, weight_a, weight_b);
        const __m256i high = blend_four_pixels(plan.row_a + 4 * x + 16, plan.row_b + 4 * x + 16, weight_a, weight_b);
        // Even 32-bit numbers hold channels 0 and 1, odd ones channel 2; the shuffle leaves pixels 0 1 4 5 2 3 6 7.
        const __m256 low_ps = _mm256_castsi256_ps(low), high_ps = _mm256_castsi256_ps(high);
        const __m256i even = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low_ps, high_ps, 0x88)), 0xD8);
        const __m256i odd = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low_ps, high_ps, 0xDD)), 0xD8);
        const __m256i low_half = _mm256_set1_epi32(0xFFFF);
        store_normalised(plan.planes[0] + x, _mm256_and_si256(even, low_half), plan.scale[0], plan.bias[0]);
        store_normalised(plan.planes[1] + x, _mm256_srli_epi32(even, 16), plan.scale[1], plan.bias[1]);
        store_normalised(plan.planes[2] + x, _mm256_and_si256(odd, low_half), plan.scale[2], plan.bias[2]);
    }
    blend_pixels_of_rows(plan, x);
}

#elif defined(__ARM_NEON)

void resize_row(const uint8_t* row, const ColumnPlan& plan, int16_t* resized) {
    static const uint8_t first_bytes[8] = {0, 1, 2, 255, 255, 255, 255, 255};
    static const uint8_t second_bytes[8] = {3, 4, 5, 255, 255, 255, 255, 255};
    const uint8x8_t first_of = vld1_u8(first_bytes), second_of = vld1_u8(second_bytes);
    int32_t x = 0;
    for (; x < plan.count_loading_16; ++x) {
        const uint8x8_t bytes = vld1_u8(row + plan.offsets[x]);
        const int16x4_t first = vreinterpret_s16_u16(vget_low_u16(vmovl_u8(vtbl1_u8(bytes, first_of))));
        const int16x4_t second = vreinterpret_s16_u16(vget_low_u16(vmovl_u8(vtbl1_u8(bytes, second_of))));
        const int32x4_t sum = vmlal_n_s16(vmull_n_s16(first, plan.weights[8 * x]), second, plan.weights[8 * x + 1]);
        vst1_s16(resized + 4 * x, vshrn_n_s32(sum, 4));
    }
    resize_pixels(row, plan, x, resized);
}

BOXWRIGHT_HD int32x4_t blend_four_levels(int16x4_t a, int16x4_t b, int32_t weight_a, int32_t weight_b) {
    const int32x4_t part_a = vshrq_n_s32(vmull_n_s16(a, static_cast<int16_t>(weight_a)), 16);
    const int32x4_t part_b = vshrq_n_s32(vmull_n_s16(b, static_cast<int16_t>(weight_b)), 16);
    const int32x4_t level = vshrq_n_s32(vaddq_s32(vaddq_s32(part_a, part_b), vdupq_n_s32(2)), 2);
    return vminq_s32(level, vdupq_n_s32(255));
}

void blend_rows(const RowPlan& plan) {
    int32_t x = 0;
    for (; x + 4 <= plan.count; x += 4) {
        const int16x4x4_t a = vld4_s16(plan.row_a + 4 * x), b = vld4_s16(plan.row_b + 4 * x);
        for (int channel = 0; channel < 3; ++channel) {
            const int32x4_t levels = blend_four_levels(a.val[channel], b.val[channel], plan.weight_a, plan.weight_b);
            const float32x4_t product = vmulq_n_f32(vcvtq_f32_s32(levels), plan.scale[channel]);
            vst1q_f32(plan.planes[channel] + x, vaddq_f32(product, vdupq_n_f32(plan.bias[channel])));
        }
    }
    blend_pixels_of_rows(plan, x);
}

#else

void resize_row(const uint8_t* row, const ColumnPlan& plan, int16_t* resized) { resize_pixels(row, plan, 0, resized); }

void blend_rows(const RowPlan& plan) { blend_pixels_of_rows(plan, 0); }

#endif

}  // namespace

const VectorKernels kernels = {select_above, select_above_each, raw_thresholds, apply_sigmoid, max_finite,
                               softmax,      is_suppressed,     resize_row,     blend_rows};

}  // namespace BOXWRIGHT_ISA
}  // namespace boxwright
