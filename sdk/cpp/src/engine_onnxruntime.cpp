// ONNX Runtime on the CPU: an ONNX file; the node of --nms plugin runs by its body, which ONNX Runtime expands.
#include <onnxruntime_cxx_api.h>

#include <algorithm>

#include "engine.h"
#include "onnx_file.h"

namespace boxwright {

namespace {

ElementType element_type(ONNXTensorElementDataType type) {
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return ElementType::float32;
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) return ElementType::uint8;
    return ElementType::other;
}

// One for the process, as ONNX Runtime wants it; what goes wrong is thrown, and not logged too.
Ort::Env& environment() {
    static Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "boxwright");
    return env;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

class OnnxRuntimeEngine : public Engine {
   public:
    OnnxRuntimeEngine(const std::string& path, const Options& options) : session_(open(path, options)) {
        Ort::AllocatorWithDefaultOptions allocator;
        for (size_t i = 0; i < session_.GetInputCount(); ++i) {
            inputs_.push_back(session_.GetInputNameAllocated(i, allocator).get());
        }
        for (size_t i = 0; i < session_.GetOverridableInitializerCount(); ++i) {
            defaulted_inputs_.push_back(session_.GetOverridableInitializerNameAllocated(i, allocator).get());
        }
        for (size_t i = 0; i < session_.GetOutputCount(); ++i) {
            outputs_.push_back(session_.GetOutputNameAllocated(i, allocator).get());
        }
    }

    std::string manifest() const override {
        Ort::AllocatorWithDefaultOptions allocator;
        const auto text = session_.GetModelMetadata().LookupCustomMetadataMapAllocated(kManifestKey, allocator);
        return text ? text.get() : "";
    }

    ImageInput image_input() const override {
        const auto found = std::find(inputs_.begin(), inputs_.end(), kImages);
        if (found == inputs_.end()) return {};
        const Ort::TypeInfo type = session_.GetInputTypeInfo(static_cast<size_t>(found - inputs_.begin()));
        const auto tensor = type.GetTensorTypeAndShapeInfo();
        return {element_type(tensor.GetElementType()), tensor.GetShape()};
    }

    bool has_threshold(const std::string& name) const override {
        return contains(defaulted_inputs_, name) || contains(inputs_, name);
    }

    bool has_output(const std::string& name) const override { return contains(outputs_, name); }

    void set_image(float* data, const std::vector<int64_t>& shape) override { set(kImages, data, shape); }
    void set_image(uint8_t* data, const std::vector<int64_t>& shape) override { set(kImages, data, shape); }

    void set_threshold(const std::string& name, float value) override {
        float& kept = name == kThresholds[0] ? score_threshold_ : iou_threshold_;
        kept = value;
        set(name, &kept, {});
    }

    void run() override {
        std::vector<const char*> input_names, output_names;
        for (const std::string& name : given_names_) input_names.push_back(name.c_str());
        for (const std::string& name : outputs_) output_names.push_back(name.c_str());
        results_ = session_.Run(Ort::RunOptions(), input_names.data(), given_.data(), given_.size(), output_names.data(),
                                output_names.size());
    }

    Tensor<float> floats(const std::string& output) const override {
        return get<float>(output, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    }

    Tensor<int32_t> integers(const std::string& output) const override {
        return get<int32_t>(output, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
    }

   private:
    static Ort::Session open(const std::string& path, const Options& options) {
        if (options.device != "CPU") {
            throw Error("device: expected CPU with ONNX Runtime, got " + options.device + "; pass CPU or another engine");
        }
        onnx_metadata(read_model_file(path), kManifestKey);  // refuses what must not reach the engine
        Ort::SessionOptions settings;
        settings.SetIntraOpNumThreads(options.num_threads);
        return Ort::Session(environment(), std::basic_string<ORTCHAR_T>(path.begin(), path.end()).c_str(), settings);
    }

    template <typename Element>
    void set(const std::string& name, Element* data, const std::vector<int64_t>& shape) {
        size_t count = 1;
        for (const int64_t side : shape) count *= static_cast<size_t>(side);
        const auto place = static_cast<size_t>(std::find(given_names_.begin(), given_names_.end(), name) - given_names_.begin());
        if (place == given_names_.size()) {
            given_names_.push_back(name);
            given_.emplace_back(nullptr);
        }
        given_[place] = Ort::Value::CreateTensor<Element>(memory_, data, count, shape.data(), shape.size());
    }

    template <typename Element>
    Tensor<Element> get(const std::string& name, ONNXTensorElementDataType type) const {
        const auto place = static_cast<size_t>(std::find(outputs_.begin(), outputs_.end(), name) - outputs_.begin());
        const Ort::Value& value = results_.at(place);
        const auto info = value.GetTensorTypeAndShapeInfo();
        if (info.GetElementType() != type) {
            throw Error("model: expected another type of the output " + name + "; export it again");
        }
        return {value.GetTensorData<Element>(), info.GetShape()};
    }

    Ort::Session session_;
    Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<std::string> inputs_, defaulted_inputs_, outputs_, given_names_;
    std::vector<Ort::Value> given_, results_;
    float score_threshold_ = 0.0f;
    float iou_threshold_ = 0.0f;
};

}  // namespace

std::unique_ptr<Engine> open_onnxruntime(const std::string& path, const Options& options) {
    return std::make_unique<OnnxRuntimeEngine>(path, options);
}

}  // namespace boxwright
