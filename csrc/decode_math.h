// The arithmetic of DecodeNMS, one box or one score at a time, shared by the CPU kernels and the CUDA kernel.
//
// Every function rounds after every operation, in the order of the numpy reference (boxwright/core/decode.py), so that
// all instruction sets and both processors give the same bits: compile with -ffp-contract=off (nvcc: --fmad=false).
// Nothing here has external linkage and nothing comes from the standard library: files compiled for different
// instruction sets include this header, and a shared inline function would end up as the linker's choice of them.
#ifndef BOXWRIGHT_DECODE_MATH_H
#define BOXWRIGHT_DECODE_MATH_H

#include <cstdint>

#if defined(__CUDACC__)
#define BOXWRIGHT_HD static __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define BOXWRIGHT_HD static inline __attribute__((always_inline))
#else
#define BOXWRIGHT_HD static inline
#endif

namespace boxwright {

enum class BoxCoding : int32_t { anchor_delta, yolov1, yolov2, yolov4, yolov5, yolox, distances, xyxy, cxcywh };
enum class Activation : int32_t { none, sigmoid, softmax };
enum class Combination : int32_t { none, multiply, sqrt };
enum class TopKScope : int32_t { image, level, class_ };
enum class Overlap : int32_t { iou, diou };

constexpr float kMaxFinite = 3.402823466e+38f;

struct Box {
    float x1, y1, x2, y2;
};

// What a coding needs beside the raw numbers and the prior; `stride` and `scale_xy` are those of the box's level.
struct CodingParameters {
    BoxCoding coding;
    float weights[4];
    float delta_clip;  // 0: none
    float stride;
    float scale_xy;
};

// Codings that place the centre within a grid cell need the stride of the level that a box comes from.
BOXWRIGHT_HD bool needs_stride(BoxCoding coding) {
    return coding == BoxCoding::yolov1 || coding == BoxCoding::yolov2 || coding == BoxCoding::yolov4 ||
           coding == BoxCoding::yolov5;
}

BOXWRIGHT_HD float smaller(float a, float b) { return a < b ? a : b; }
BOXWRIGHT_HD float larger(float a, float b) { return a > b ? a : b; }

BOXWRIGHT_HD float absolute(float value) { return value < 0.0f ? -value : value; }

// False for NaN and both infinities.
BOXWRIGHT_HD bool is_finite(float value) { return absolute(value) <= kMaxFinite; }

BOXWRIGHT_HD bool is_finite(const Box& box) {
    return is_finite(box.x1) && is_finite(box.y1) && is_finite(box.x2) && is_finite(box.y2);
}

BOXWRIGHT_HD uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

BOXWRIGHT_HD float float_of_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

BOXWRIGHT_HD float positive_infinity() { return float_of_bits(0x7F800000u); }

// 2^exponent for exponents whose power is a normal number.
BOXWRIGHT_HD float power_of_two(int32_t exponent) {
    return float_of_bits((static_cast<uint32_t>(exponent) + 127u) << 23);
}

// e^value within one unit in the last place, without branches; 0 and infinity beyond float32, NaN for NaN.
//
// value = n ln 2 + r with |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r), q being a minimax polynomial (relative error
// 3.2e-9 on the interval). The scaling by 2^n is split in two so that subnormal results come out right.
BOXWRIGHT_HD float exponential(float value) {
    value = value > 89.0f ? 89.0f : value;
    value = value < -104.0f ? -104.0f : value;
    const float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
    const float shifted = value * 1.44269504f + round_to_integer;
    const float n = shifted - round_to_integer;
    float r = value - n * 0.693359375f;  // exact: ln 2 is split into ten bits and the rest
    r = r - n * -2.12194440e-4f;
    float q = 0x1.6a2042p-10f;
    q = q * r + 0x1.123c44p-7f;
    q = q * r + 0x1.5559p-5f;
    q = q * r + 0x1.55548ep-3f;
    q = q * r + 0x1.fffffcp-2f;
    const float mantissa = (q * (r * r) + r) + 1.0f;
    const int32_t exponent = static_cast<int32_t>(float_bits(shifted) - 0x4B400000u);
    const int32_t half = exponent >> 1;
    // For NaN the exponent is arbitrary, but NaN times any power is NaN.
    return mantissa * power_of_two(half) * power_of_two(exponent - half);
}

// ln value for positive normal numbers, from below: at most 2e-5 + 1e-7 |ln value| too small, never too large by more
// than its roundings. The series of ln m = 2 artanh((m - 1) / (m + 1)), 1 <= m < 2, has positive terms, four of which
// are taken.
BOXWRIGHT_HD float logarithm_from_below(float value) {
    const uint32_t bits = float_bits(value);
    const float exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
    const float mantissa = float_of_bits((bits & 0x007FFFFFu) | 0x3F800000u);
    const float t = (mantissa - 1.0f) / (mantissa + 1.0f);
    const float square = t * t;
    const float series = ((square * 0.28571429f + 0.4f) * square + 0.66666669f) * square + 2.0f;
    return exponent * 0.693147181f + series * t;
}

BOXWRIGHT_HD float sigmoid(float logit) { return 1.0f / (1.0f + exponential(-logit)); }

BOXWRIGHT_HD float square_root(float value) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(value);
#else
    return __builtin_sqrtf(value);
#endif
}

// What a logit must be above for its sigmoid times `factor` to be above the threshold that `lowered_product` is, lowered
// by more than all roundings (8e-6 of it). With p = lowered_product / factor it is ln(p / (1 - p)).
BOXWRIGHT_HD float raw_threshold(float factor, float lowered_product) {
    const float p = lowered_product / factor;
    const float odds = p / (1.0f - p);
    const float threshold = logarithm_from_below(odds) - 4e-5f;
    const float from_below = odds < 1e-37f ? -positive_infinity() : threshold;
    const bool is_reachable = (factor > 0.0f) & (p < 1.0f);
    return is_reachable ? from_below : positive_infinity();
}

BOXWRIGHT_HD Box box_of_centre(float centre_x, float centre_y, float width, float height) {
    const float half_width = width * 0.5f, half_height = height * 0.5f;
    return {centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height};
}

BOXWRIGHT_HD float clipped_delta(float delta, float delta_clip) {
    return delta_clip > 0.0f && delta > delta_clip ? delta_clip : delta;
}

// Source: Girshick et al., R-CNN, CVPR 2014, appendix C.
BOXWRIGHT_HD Box decode_anchor_delta(const float raw[4], const float prior[4], const CodingParameters& parameters) {
    const float width = prior[2] - prior[0], height = prior[3] - prior[1];
    const float centre_x = prior[0] + 0.5f * width, centre_y = prior[1] + 0.5f * height;
    const float dx = raw[0] / parameters.weights[0], dy = raw[1] / parameters.weights[1];
    const float dw = clipped_delta(raw[2] / parameters.weights[2], parameters.delta_clip);
    const float dh = clipped_delta(raw[3] / parameters.weights[3], parameters.delta_clip);
    return box_of_centre(dx * width + centre_x, dy * height + centre_y, exponential(dw) * width,
                         exponential(dh) * height);
}

// Source: Redmon et al., You Only Look Once, CVPR 2016.
BOXWRIGHT_HD Box decode_yolov1(const float raw[4], const float prior[4], const CodingParameters& parameters) {
    return box_of_centre(prior[0] + raw[0] * parameters.stride, prior[1] + raw[1] * parameters.stride,
                         raw[2] * raw[2] * prior[2], raw[3] * raw[3] * prior[3]);
}

// Source: Redmon and Farhadi, YOLO9000, CVPR 2017, section 2.
BOXWRIGHT_HD Box decode_yolov2(const float raw[4], const float prior[4], const CodingParameters& parameters) {
    return box_of_centre(prior[0] + sigmoid(raw[0]) * parameters.stride,
                         prior[1] + sigmoid(raw[1]) * parameters.stride, exponential(raw[2]) * prior[2],
                         exponential(raw[3]) * prior[3]);
}

// Source: Bochkovskiy et al., YOLOv4, 2020, section 3.4.
BOXWRIGHT_HD Box decode_yolov4(const float raw[4], const float prior[4], const CodingParameters& parameters) {
    const float scale = parameters.scale_xy, shift = (scale - 1.0f) * 0.5f;
    const float offset_x = sigmoid(raw[0]) * scale - shift, offset_y = sigmoid(raw[1]) * scale - shift;
    return box_of_centre(prior[0] + offset_x * parameters.stride, prior[1] + offset_y * parameters.stride,
                         exponential(raw[2]) * prior[2], exponential(raw[3]) * prior[3]);
}

// Source: the public description of the YOLOv5 model.
BOXWRIGHT_HD Box decode_yolov5(const float raw[4], const float prior[4], const CodingParameters& parameters) {
    const float width = sigmoid(raw[2]) * 2.0f, height = sigmoid(raw[3]) * 2.0f;
    return box_of_centre(prior[0] + (sigmoid(raw[0]) * 2.0f - 0.5f) * parameters.stride,
                         prior[1] + (sigmoid(raw[1]) * 2.0f - 0.5f) * parameters.stride, width * width * prior[2],
                         height * height * prior[3]);
}

// Source: Ge et al., YOLOX, 2021.
BOXWRIGHT_HD Box decode_yolox(const float raw[4], const float prior[4]) {
    return box_of_centre(prior[0] + raw[0] * prior[2], prior[1] + raw[1] * prior[3], exponential(raw[2]) * prior[2],
                         exponential(raw[3]) * prior[3]);
}

// Source: Tian et al., FCOS, ICCV 2019, equation 1.
BOXWRIGHT_HD Box decode_distances(const float raw[4], const float prior[4]) {
    return {prior[0] - raw[0] * prior[2], prior[1] - raw[1] * prior[3], prior[0] + raw[2] * prior[2],
            prior[1] + raw[3] * prior[3]};
}

BOXWRIGHT_HD Box decode_xyxy(const float raw[4], const float* prior) {
    if (prior == nullptr) return {raw[0], raw[1], raw[2], raw[3]};
    return {prior[0] + raw[0] * prior[2], prior[1] + raw[1] * prior[3], prior[0] + raw[2] * prior[2],
            prior[1] + raw[3] * prior[3]};
}

BOXWRIGHT_HD Box decode_cxcywh(const float raw[4], const float* prior) {
    if (prior == nullptr) return box_of_centre(raw[0], raw[1], raw[2], raw[3]);
    return box_of_centre(prior[0] + raw[0] * prior[2], prior[1] + raw[1] * prior[3], raw[2] * prior[2],
                         raw[3] * prior[3]);
}

// The box of one anchor; `prior` is null only for the codings xyxy and cxcywh.
BOXWRIGHT_HD Box decode_box(const float raw[4], const float* prior, const CodingParameters& parameters) {
    switch (parameters.coding) {
        case BoxCoding::anchor_delta: return decode_anchor_delta(raw, prior, parameters);
        case BoxCoding::yolov1: return decode_yolov1(raw, prior, parameters);
        case BoxCoding::yolov2: return decode_yolov2(raw, prior, parameters);
        case BoxCoding::yolov4: return decode_yolov4(raw, prior, parameters);
        case BoxCoding::yolov5: return decode_yolov5(raw, prior, parameters);
        case BoxCoding::yolox: return decode_yolox(raw, prior);
        case BoxCoding::distances: return decode_distances(raw, prior);
        case BoxCoding::xyxy: return decode_xyxy(raw, prior);
        case BoxCoding::cxcywh: return decode_cxcywh(raw, prior);
    }
    return {0.0f, 0.0f, 0.0f, 0.0f};
}

// Whether the four raw numbers and the prior, where there is one, are finite: other anchors have no box.
BOXWRIGHT_HD bool are_finite(const float raw[4], const float* prior) {
    bool finite = true;
    for (int i = 0; i < 4; ++i) finite = finite && is_finite(raw[i]) && (prior == nullptr || is_finite(prior[i]));
    return finite;
}

BOXWRIGHT_HD Box clip_box(const Box& box, float height, float width) {
    return {smaller(larger(box.x1, 0.0f), width), smaller(larger(box.y1, 0.0f), height),
            smaller(larger(box.x2, 0.0f), width), smaller(larger(box.y2, 0.0f), height)};
}

// Area in square pixels, 0 for a box of negative width or height.
BOXWRIGHT_HD float box_area(const Box& box) {
    return larger(box.x2 - box.x1, 0.0f) * larger(box.y2 - box.y1, 0.0f);
}

// IoU or DIoU of two boxes of positive area. Not above 0, or NaN, where they do not intersect.
// Source: Zheng et al., Distance-IoU Loss, AAAI 2020, equation 7.
BOXWRIGHT_HD float overlap_of(const Box& a, float area_a, const Box& b, float area_b, Overlap kind) {
    const float width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), 0.0f);
    const float height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), 0.0f);
    const float intersection = width * height;
    const float iou = intersection / (area_a + area_b - intersection);
    if (kind == Overlap::iou) return iou;
    const float offset_x = (a.x1 + a.x2) * 0.5f - (b.x1 + b.x2) * 0.5f;
    const float offset_y = (a.y1 + a.y2) * 0.5f - (b.y1 + b.y2) * 0.5f;
    const float enclosing_width = larger(a.x2, b.x2) - smaller(a.x1, b.x1);
    const float enclosing_height = larger(a.y2, b.y2) - smaller(a.y1, b.y1);
    const float distance_squared = offset_x * offset_x + offset_y * offset_y;
    const float diagonal_squared = enclosing_width * enclosing_width + enclosing_height * enclosing_height;
    return iou - distance_squared / diagonal_squared;
}

}  // namespace boxwright

#endif
