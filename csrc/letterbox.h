// Pixels to network input in one pass: resize, place on a padded canvas, normalise, split into planes.
//
// The resize is OpenCV's INTER_LINEAR on bytes, to the bit, so that results are those of boxwright/core/letterbox.py.
#ifndef BOXWRIGHT_LETTERBOX_H
#define BOXWRIGHT_LETTERBOX_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "instruction_set.h"

namespace boxwright {

// Of images and canvases; sums of their offsets stay far from overflow.
constexpr int64_t kMaxSide = 1 << 20;

// (height, width, 3) bytes. Rows may be any number of bytes apart, also a negative one.
struct ImageView {
    const uint8_t* data = nullptr;
    int64_t height = 0;
    int64_t width = 0;
    ptrdiff_t row_stride = 0;
};

// Where the resized image lies on the canvas, and what the numbers become: value * scale + bias.
// The arrays are in the order of the output's channels.
struct LetterboxParameters {
    int64_t resized_height = 0;
    int64_t resized_width = 0;
    int64_t top = 0;
    int64_t left = 0;
    int64_t height = 0;  // of the canvas
    int64_t width = 0;
    float pad_value[3] = {114.0f, 114.0f, 114.0f};  // in the units of the image
    float scale[3] = {1.0f, 1.0f, 1.0f};
    float bias[3] = {0.0f, 0.0f, 0.0f};
    bool swap_channels = false;  // the output's channels are the image's reversed

    // What is wrong, in the words "what: expected ..., got ...; what to do"; empty where nothing is.
    std::string validate(const ImageView& image) const;
};

// Tables and rows that are kept between calls, so that calls with sizes no larger than before allocate nothing.
struct LetterboxWorkspace {
    std::vector<int32_t> column_offsets;
    std::vector<int16_t> column_weights;
    std::vector<int16_t> resized_rows[2];
};

// Fills `canvas`, (3, height, width). Throws std::invalid_argument with the text of validate.
void letterbox(const ImageView& image, const LetterboxParameters& parameters, float* canvas,
               LetterboxWorkspace& workspace, InstructionSet instruction_set = best_instruction_set());

// Boxes (count, 4) xyxy in pixels of the canvas to pixels of the image, clipped to it.
void boxes_to_image(const float* boxes_xyxy, int64_t count, const LetterboxParameters& parameters, int64_t image_height,
                    int64_t image_width, float* image_boxes_xyxy);

}  // namespace boxwright

#endif
