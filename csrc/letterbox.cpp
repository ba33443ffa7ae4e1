#include "letterbox.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "vector_kernels.h"

namespace boxwright {

namespace {

constexpr int kWeightOne = 2048;
constexpr int64_t kBytesLoadedAPixel = 16;

// Where one output row or column samples the source: between `first` and `first + 1`.
struct Sample {
    int64_t first;
    int weight_first;
    int weight_second;
};

// OpenCV computes the position in double and its fraction in float; the order of these operations is its own.
Sample sample_at(int64_t position, double source_per_output) {
    const float centre = static_cast<float>((static_cast<double>(position) + 0.5) * source_per_output - 0.5);
    const float floor = std::floor(centre);
    const float fraction = centre - floor;
    return {static_cast<int64_t>(floor), static_cast<int>(std::lrintf((1.0f - fraction) * kWeightOne)),
            static_cast<int>(std::lrintf(fraction * kWeightOne))};
}

double source_per_output(int64_t source, int64_t output) {
    return 1.0 / (static_cast<double>(output) / static_cast<double>(source));
}

// Beyond the border a column takes the outermost pixel alone.
Sample column_sample(int64_t x, double scale, int64_t source_width) {
    Sample sample = sample_at(x, scale);
    if (sample.first < 0) return {0, kWeightOne, 0};
    if (sample.first >= source_width - 1) return {std::max<int64_t>(source_width - 2, 0), 0, kWeightOne};
    return sample;
}

ColumnPlan plan_columns(int64_t source_width, int64_t resized_width, LetterboxWorkspace& workspace) {
    const size_t count = static_cast<size_t>(resized_width);
    workspace.column_offsets.resize(count);
    workspace.column_weights.resize(8 * count);
    const double scale = source_per_output(source_width, resized_width);
    int32_t count_loading_16 = 0;
    for (size_t x = 0; x < count; ++x) {
        const Sample sample = column_sample(static_cast<int64_t>(x), scale, source_width);
        workspace.column_offsets[x] = static_cast<int32_t>(3 * sample.first);
        for (size_t pair = 0; pair < 4; ++pair) {
            workspace.column_weights[8 * x + 2 * pair] = static_cast<int16_t>(sample.weight_first);
            workspace.column_weights[8 * x + 2 * pair + 1] = static_cast<int16_t>(sample.weight_second);
        }
        if (3 * sample.first + kBytesLoadedAPixel <= 3 * source_width) count_loading_16 = static_cast<int32_t>(x) + 1;
    }
    return {workspace.column_offsets.data(), workspace.column_weights.data(), static_cast<int32_t>(count),
            count_loading_16};
}

// The two resized source rows that the current output row blends; rows are resized once, in order of need.
class ResizedRows {
   public:
    ResizedRows(const ImageView& image, const ColumnPlan& columns, LetterboxWorkspace& workspace,
                const VectorKernels& kernels)
        : image_(image), columns_(columns), workspace_(workspace), kernels_(kernels) {
        for (auto& row : workspace.resized_rows) row.resize(4 * static_cast<size_t>(columns.count));
    }

    // Makes `row` available; `other` is the one that must stay.
    const int16_t* get(int64_t row, int64_t other) {
        for (int slot = 0; slot < 2; ++slot) {
            if (held_[slot] == row) return workspace_.resized_rows[slot].data();
        }
        const int slot = held_[0] == other ? 1 : 0;
        held_[slot] = row;
        int16_t* resized = workspace_.resized_rows[slot].data();
        const uint8_t* pixels = image_.data + row * image_.row_stride;
        if (image_.width == 1) {  // a single pixel needs a neighbour to be blended with
            const uint8_t doubled[6] = {pixels[0], pixels[1], pixels[2], pixels[0], pixels[1], pixels[2]};
            kernels_.resize_row(doubled, columns_, resized);
        } else {
            kernels_.resize_row(pixels, columns_, resized);
        }
        return resized;
    }

   private:
    const ImageView& image_;
    const ColumnPlan& columns_;
    LetterboxWorkspace& workspace_;
    const VectorKernels& kernels_;
    int64_t held_[2] = {-1, -1};
};

void fill_padding(const LetterboxParameters& parameters, float* canvas) {
    const int64_t height = parameters.height, width = parameters.width;
    const int64_t top = parameters.top, left = parameters.left;
    const int64_t bottom = top + parameters.resized_height, right = left + parameters.resized_width;
    for (int channel = 0; channel < 3; ++channel) {
        float* plane = canvas + channel * height * width;
        const float value = parameters.pad_value[channel] * parameters.scale[channel] + parameters.bias[channel];
        std::fill(plane, plane + top * width, value);
        if (left > 0 || right < width) {
            for (int64_t y = top; y < bottom; ++y) {
                std::fill(plane + y * width, plane + y * width + left, value);
                std::fill(plane + y * width + right, plane + (y + 1) * width, value);
            }
        }
        std::fill(plane + bottom * width, plane + height * width, value);
    }
}

void place_image(const ImageView& image, const LetterboxParameters& parameters, float* canvas,
                 LetterboxWorkspace& workspace, const VectorKernels& kernels) {
    const ColumnPlan columns = plan_columns(image.width, parameters.resized_width, workspace);
    ResizedRows rows(image, columns, workspace, kernels);
    RowPlan plan = {};
    plan.count = columns.count;
    for (int channel = 0; channel < 3; ++channel) {
        const int output_channel = parameters.swap_channels ? 2 - channel : channel;
        plan.scale[channel] = parameters.scale[output_channel];
        plan.bias[channel] = parameters.bias[output_channel];
    }
    const double scale = source_per_output(image.height, parameters.resized_height);
    for (int64_t y = 0; y < parameters.resized_height; ++y) {
        // Beyond the border both rows are the outermost one, with their weights.
        const Sample sample = sample_at(y, scale);
        const int64_t first = std::clamp<int64_t>(sample.first, 0, image.height - 1);
        const int64_t second = std::clamp<int64_t>(sample.first + 1, 0, image.height - 1);
        plan.row_a = rows.get(first, second);
        plan.row_b = rows.get(second, first);
        plan.weight_a = sample.weight_first;
        plan.weight_b = sample.weight_second;
        for (int channel = 0; channel < 3; ++channel) {
            const int output_channel = parameters.swap_channels ? 2 - channel : channel;
            plan.planes[channel] = canvas + (output_channel * parameters.height + parameters.top + y) * parameters.width +
                                   parameters.left;
        }
        kernels.blend_rows(plan);
    }
}

std::string size_text(int64_t height, int64_t width) { return std::to_string(width) + "x" + std::to_string(height); }

std::string sides_text() { return "sides of 1 to " + std::to_string(kMaxSide) + " pixels"; }

bool is_side(int64_t side) { return side >= 1 && side <= kMaxSide; }

}  // namespace

std::string LetterboxParameters::validate(const ImageView& image) const {
    if (image.data == nullptr || !is_side(image.height) || !is_side(image.width)) {
        return "letterbox image: expected " + sides_text() + ", got " + size_text(image.height, image.width) +
               "; give another image";
    }
    if (!is_side(height) || !is_side(width)) {
        return "letterbox canvas: expected " + sides_text() + ", got " + size_text(height, width) + "; correct the size";
    }
    const bool fits = is_side(resized_height) && is_side(resized_width) && top >= 0 && left >= 0 &&
                      top <= height - resized_height && left <= width - resized_width;
    if (!fits) {
        return "letterbox placement: expected a place within " + size_text(height, width) + ", got " +
               size_text(resized_height, resized_width) + " at row " + std::to_string(top) + ", column " +
               std::to_string(left) + "; correct the size or the offset";
    }
    return "";
}

void letterbox(const ImageView& image, const LetterboxParameters& parameters, float* canvas,
               LetterboxWorkspace& workspace, InstructionSet instruction_set) {
    const std::string error = parameters.validate(image);
    if (!error.empty()) throw std::invalid_argument(error);
    fill_padding(parameters, canvas);
    place_image(image, parameters, canvas, workspace, vector_kernels(instruction_set));
}

void boxes_to_image(const float* boxes_xyxy, int64_t count, const LetterboxParameters& parameters, int64_t image_height,
                    int64_t image_width, float* image_boxes_xyxy) {
    const float scale_x = static_cast<float>(static_cast<double>(parameters.resized_width) / static_cast<double>(image_width));
    const float scale_y = static_cast<float>(static_cast<double>(parameters.resized_height) / static_cast<double>(image_height));
    const float left = static_cast<float>(parameters.left), top = static_cast<float>(parameters.top);
    const float height = static_cast<float>(image_height), width = static_cast<float>(image_width);
    for (int64_t i = 0; i < count; ++i) {
        const float* box = boxes_xyxy + 4 * i;
        const Box scaled = {(box[0] - left) / scale_x, (box[1] - top) / scale_y, (box[2] - left) / scale_x,
                            (box[3] - top) / scale_y};
        const Box clipped = clip_box(scaled, height, width);
        float* result = image_boxes_xyxy + 4 * i;
        result[0] = clipped.x1;
        result[1] = clipped.y1;
        result[2] = clipped.x2;
        result[3] = clipped.y2;
    }
}

}  // namespace boxwright
