// Boxwright for C++: an exported model file and pixels in, boxes out.
//
//   boxwright::Detector detector("m.onnx");
//   for (const auto& found : detector.detect({pixels, height, width, stride_in_bytes})) ...
#ifndef BOXWRIGHT_DETECTOR_HPP
#define BOXWRIGHT_DETECTOR_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace boxwright {

// What is wrong with a file, a value or an image: one line of what was expected, what came and what to do.
class Error : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

// (height, width, 3) bytes in BGR order; rows may be any number of bytes apart.
struct Image {
    const uint8_t* data = nullptr;
    int64_t height = 0;
    int64_t width = 0;
    ptrdiff_t row_stride = 0;  // in bytes; 0 where the rows lie side by side
};

struct Detection {
    float box_xyxy[4];  // in pixels of the image
    float score;
    int32_t class_id;
};

struct Options {
    std::optional<float> score_threshold;  // in [0, 1]; the manifest's where absent
    std::optional<float> iou_threshold;    // likewise; one that is built into the model cannot be another
    int num_threads = 0;                   // of the engine; 0 leaves it to the engine
    std::string engine;                    // "openvino", "onnxruntime" or "tensorrt"; empty: what suits the file
    std::string device = "CPU";            // as OpenVINO names it; ONNX Runtime has the CPU alone, TensorRT GPU or GPU.1
};

// Finds objects with a model that carries its own description. One detector serves one thread at a time.
class Detector {
   public:
    // Opens an ONNX file or, with OpenVINO, the .xml of an IR that `boxwright export` wrote, or with TensorRT an engine
    // (.engine, .plan); throws Error.
    explicit Detector(const std::string& path, const Options& options = {});
    ~Detector();
    Detector(Detector&&) noexcept;
    Detector& operator=(Detector&&) noexcept;

    // The objects in an image, best first; throws Error.
    std::vector<Detection> detect(const Image& image);

    const std::vector<std::string>& class_names() const;

   private:
    struct Implementation;
    std::unique_ptr<Implementation> implementation_;
};

}  // namespace boxwright

#endif
