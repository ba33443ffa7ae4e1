// What the SDK needs of an engine: it moves tensors and knows no boxes.
#ifndef BOXWRIGHT_SDK_ENGINE_H
#define BOXWRIGHT_SDK_ENGINE_H

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "boxwright/detector.hpp"

namespace boxwright {

constexpr const char* kManifestKey = "boxwright.manifest";
constexpr const char* kImages = "images";
constexpr const char* kThresholds[] = {"score_threshold", "iou_threshold"};

// An output, in memory of the engine until it runs again.
template <typename Element>
struct Tensor {
    const Element* data = nullptr;
    std::vector<int64_t> shape;

    int64_t size() const {
        int64_t product = 1;
        for (const int64_t side : shape) product *= side;
        return product;
    }
};

enum class ElementType { float32, uint8, other };

struct ImageInput {
    ElementType type = ElementType::other;
    std::vector<int64_t> shape;  // -1 where a side is open; empty where there is no such input
};

// A model opened by an engine; all of it may throw Error or another std::exception.
class Engine {
   public:
    virtual ~Engine() = default;
    virtual std::string manifest() const = 0;  // empty where the file has none
    virtual ImageInput image_input() const = 0;
    virtual bool has_threshold(const std::string& name) const = 0;
    virtual bool has_output(const std::string& name) const = 0;

    // The memory must stay as it is until `run` is over.
    virtual void set_image(float* data, const std::vector<int64_t>& shape) = 0;
    virtual void set_image(uint8_t* data, const std::vector<int64_t>& shape) = 0;
    virtual void set_threshold(const std::string& name, float value) = 0;
    virtual void run() = 0;
    virtual Tensor<float> floats(const std::string& output) const = 0;
    virtual Tensor<int32_t> integers(const std::string& output) const = 0;
};

// Each exists where it was compiled in (BOXWRIGHT_WITH_OPENVINO, BOXWRIGHT_WITH_ONNXRUNTIME, BOXWRIGHT_WITH_TENSORRT).
std::unique_ptr<Engine> open_openvino(const std::string& path, const Options& options);
std::unique_ptr<Engine> open_onnxruntime(const std::string& path, const Options& options);
std::unique_ptr<Engine> open_tensorrt(const std::string& path, const Options& options);

// The content of a file; throws Error where there is none.
std::string read_model_file(const std::string& path);

}  // namespace boxwright

#endif
