// OpenVINO: an ONNX file, or the .xml of an IR.
#include <openvino/openvino.hpp>

#include "engine.h"
#include "onnx_file.h"

namespace boxwright {

std::vector<ov::Extension::Ptr> openvino_extensions();  // plugin_openvino.cpp

// openvino_integers.cpp
void check_signed_integers(const ov::Model& model, ov::Core& core, const std::string& device, const std::string& path);

namespace {

bool has_port(const std::vector<ov::Output<const ov::Node>>& ports, const std::string& name) {
    for (const auto& port : ports) {
        if (port.get_names().count(name) > 0) return true;
    }
    return false;
}

ov::Shape as_shape(const std::vector<int64_t>& shape) { return ov::Shape(shape.begin(), shape.end()); }

class OpenVinoEngine : public Engine {
   public:
    OpenVinoEngine(const std::string& path, const Options& options) {
        core_.add_extension(openvino_extensions());
        const std::shared_ptr<ov::Model> model = read(path);
        check_signed_integers(*model, core_, options.device, path);
        ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                            ov::hint::inference_precision(ov::element::f32)};
        if (options.num_threads > 0) settings.insert(ov::inference_num_threads(options.num_threads));
        compiled_ = core_.compile_model(model, options.device, settings);
        request_ = compiled_.create_infer_request();
    }

    std::string manifest() const override { return manifest_; }

    ImageInput image_input() const override {
        ImageInput input;
        if (!has_port(compiled_.inputs(), kImages)) return input;
        const auto port = compiled_.input(kImages);
        if (port.get_element_type() == ov::element::f32) input.type = ElementType::float32;
        if (port.get_element_type() == ov::element::u8) input.type = ElementType::uint8;
        const ov::PartialShape shape = port.get_partial_shape();
        if (shape.rank().is_dynamic()) return input;
        for (const ov::Dimension& side : shape) input.shape.push_back(side.is_static() ? side.get_length() : -1);
        return input;
    }

    bool has_threshold(const std::string& name) const override { return has_port(compiled_.inputs(), name); }
    bool has_output(const std::string& name) const override { return has_port(compiled_.outputs(), name); }

    void set_image(float* data, const std::vector<int64_t>& shape) override {
        request_.set_tensor(kImages, ov::Tensor(ov::element::f32, as_shape(shape), data));
    }

    void set_image(uint8_t* data, const std::vector<int64_t>& shape) override {
        request_.set_tensor(kImages, ov::Tensor(ov::element::u8, as_shape(shape), data));
    }

    void set_threshold(const std::string& name, float value) override {
        const ov::PartialShape shape = compiled_.input(name).get_partial_shape();
        ov::Tensor tensor(ov::element::f32, ov::Shape(shape.rank().is_static() ? shape.size() : 0, 1));
        *tensor.data<float>() = value;
        request_.set_tensor(name, tensor);
    }

    void run() override { request_.infer(); }

    Tensor<float> floats(const std::string& output) const override { return get<float>(output); }
    Tensor<int32_t> integers(const std::string& output) const override { return get<int32_t>(output); }

   private:
    // Thresholds with defaults become plain inputs, since OpenVINO would make constants of them.
    std::shared_ptr<ov::Model> read(const std::string& path) {
        const std::string suffix = path.size() >= 5 ? path.substr(path.size() - 5) : "";
        if (suffix == ".onnx") {
            const std::string content = read_model_file(path);
            manifest_ = onnx_metadata(content, kManifestKey);
            return core_.read_model(onnx_without_initializers(content, {kThresholds[0], kThresholds[1]}), ov::Tensor());
        }
        read_model_file(path);
        std::shared_ptr<ov::Model> model = core_.read_model(path);
        if (model->has_rt_info(kManifestKey)) manifest_ = model->get_rt_info<std::string>(kManifestKey);
        return model;
    }

    template <typename Element>
    Tensor<Element> get(const std::string& name) const {
        const ov::Tensor tensor = request_.get_tensor(name);
        const ov::Shape shape = tensor.get_shape();
        return {tensor.data<const Element>(), {shape.begin(), shape.end()}};
    }

    ov::Core core_;
    ov::CompiledModel compiled_;
    mutable ov::InferRequest request_;  // its get_tensor is not const
    std::string manifest_;
};

}  // namespace

std::unique_ptr<Engine> open_openvino(const std::string& path, const Options& options) {
    return std::make_unique<OpenVinoEngine>(path, options);
}

}  // namespace boxwright
