// The TensorRT plugin: boxwright::DecodeNMS as the kernels of decode_nms_cuda.h run it. Glue only.
//
// TensorRT 10 and newer take an IPluginV3, 8.5 and 8.6 an IPluginV2DynamicExt. The creator registers itself, when the
// library is loaded, under the name "DecodeNMS", version "1" and no namespace: that is what TensorRT's ONNX parsers look
// for where a node has no attributes plugin_version and plugin_namespace, whatever its domain. It is a library to be
// loaded by dlopen, or before the program; the registry's own loadLibrary wants libraries that do not register themselves.
#include <NvInfer.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "plugin_tensorrt_node.h"

namespace boxwright {
namespace tensorrt {

namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;

// TensorRT's interface knows no exceptions: what is wrong goes to the engine's logger, or to stderr without one.
void report(const std::exception& error) {
    const std::string text = std::string("boxwright: ") + error.what();
    nvinfer1::ILogger* logger = getLogger();
    if (logger != nullptr) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
    } else {
        std::fprintf(stderr, "%s\n", text.c_str());
    }
}

// What `work` returns, or `failure` where it throws.
template <typename Work, typename Result>
Result guarded(Work work, Result failure) noexcept {
    try {
        return work();
    } catch (const std::exception& error) {
        report(error);
        return failure;
    }
}

Sizes sizes_of_expressions(const DimsExprs& dimensions) {
    Sizes sizes;
    for (int32_t axis = 0; axis < dimensions.nbDims; ++axis) {
        const nvinfer1::IDimensionExpr* size = dimensions.d[axis];
        sizes.push_back(size->isConstant() ? size->getConstantValue() : -1);
    }
    return sizes;
}

std::vector<Sizes> shapes_of(const DimsExprs* inputs, int32_t num_inputs) {
    std::vector<Sizes> shapes;
    for (int32_t i = 0; i < num_inputs; ++i) shapes.push_back(sizes_of_expressions(inputs[i]));
    return shapes;
}

std::vector<Sizes> shapes_of(const DynamicPluginTensorDesc* inputs, int32_t num_inputs) {
    std::vector<Sizes> shapes;
    for (int32_t i = 0; i < num_inputs; ++i) shapes.push_back(sizes_of(inputs[i].desc.dims));
    return shapes;
}

// num_detections (B, 1), boxes (B, K, 4), scores (B, K), class_ids (B, K).
DimsExprs output_shape(const Node& node, int32_t output, const DimsExprs* inputs, IExprBuilder& expressions) {
    DimsExprs shape = {};
    shape.nbDims = output == 1 ? 3 : 2;
    shape.d[0] = inputs[1].d[0];
    const auto top = static_cast<int32_t>(node.attributes().max_detections);
    shape.d[1] = expressions.constant(output == 0 ? 1 : top);
    if (output == 1) shape.d[2] = expressions.constant(4);
    return shape;
}

DataType output_type(int32_t output) { return output == 0 || output == 3 ? DataType::kINT32 : DataType::kFLOAT; }

#if NV_TENSORRT_MAJOR >= 10

std::vector<Sizes> shapes_of(const PluginTensorDesc* inputs, int32_t num_inputs) {
    std::vector<Sizes> shapes;
    for (int32_t i = 0; i < num_inputs; ++i) shapes.push_back(sizes_of(inputs[i].dims));
    return shapes;
}

// A collection of fields, and what it points to.
class FieldCollection {
   public:
    explicit FieldCollection(std::vector<Field> fields) : fields_(std::move(fields)) {
        for (const Field& field : fields_) views_.push_back(field.view());
        collection_ = {static_cast<int32_t>(views_.size()), views_.data()};
    }
    FieldCollection(const FieldCollection&) = delete;
    FieldCollection& operator=(const FieldCollection&) = delete;

    const PluginFieldCollection* get() const { return &collection_; }

   private:
    std::vector<Field> fields_;
    std::vector<nvinfer1::PluginField> views_;
    PluginFieldCollection collection_ = {};
};

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
   public:
    explicit Plugin(Node node) : node_(std::move(node)) {}

    // ---- IPluginV3 ----

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override {
        return guarded([&]() -> nvinfer1::IPluginV3* { return new Plugin(node_); },
                       static_cast<nvinfer1::IPluginV3*>(nullptr));
    }

    // ---- core ----

    const char* getPluginName() const noexcept override { return kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return ""; }

    // ---- build ----

    int32_t getNbOutputs() const noexcept override { return kNumOutputs; }

    int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t num_inputs, const DynamicPluginTensorDesc*,
                            int32_t) noexcept override {
        return guarded(
            [&] {
                node_.set_num_inputs(num_inputs);
                node_.require_shapes(shapes_of(inputs, num_inputs));
                return 0;
            },
            -1);
    }

    int32_t getOutputDataTypes(DataType* types, int32_t num_outputs, const DataType*, int32_t) const noexcept override {
        for (int32_t output = 0; output < num_outputs; ++output) types[output] = output_type(output);
        return 0;
    }

    int32_t getOutputShapes(const DimsExprs* inputs, int32_t num_inputs, const DimsExprs*, int32_t, DimsExprs* outputs,
                            int32_t num_outputs, IExprBuilder& expressions) noexcept override {
        return guarded(
            [&] {
                node_.set_num_inputs(num_inputs);
                node_.require_shapes(shapes_of(inputs, num_inputs));
                for (int32_t output = 0; output < num_outputs; ++output) {
                    outputs[output] = output_shape(node_, output, inputs, expressions);
                }
                return 0;
            },
            -1);
    }

    bool supportsFormatCombination(int32_t place, const DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                   int32_t) noexcept override {
        std::vector<PluginTensorDesc> descriptions;
        for (int32_t i = 0; i <= place; ++i) descriptions.push_back(tensors[i].desc);
        return node_.supports(place, descriptions.data(), num_inputs);
    }

    size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                            int32_t) const noexcept override {
        return node_.workspace_size(inputs[1].max);
    }

    // ---- run time ----

    int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t num_inputs, const PluginTensorDesc*,
                          int32_t) noexcept override {
        return guarded(
            [&] {
                node_.set_num_inputs(num_inputs);
                node_.require_shapes(shapes_of(inputs, num_inputs));
                return 0;
            },
            -1);
    }

    int32_t enqueue(const PluginTensorDesc* descriptions, const PluginTensorDesc*, const void* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return guarded([&] { return node_.enqueue(descriptions, inputs, outputs, workspace, stream); }, -1);
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

    const PluginFieldCollection* getFieldsToSerialize() noexcept override {
        return guarded(
            [&] {
                serialized_ = std::make_unique<FieldCollection>(node_.to_fields());
                return serialized_->get();
            },
            static_cast<const PluginFieldCollection*>(nullptr));
    }

   private:
    Node node_;
    std::unique_ptr<FieldCollection> serialized_;
};

class Creator : public nvinfer1::IPluginCreatorV3One {
   public:
    const char* getPluginName() const noexcept override { return kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return ""; }
    const PluginFieldCollection* getFieldNames() noexcept override { return known_fields(); }

    // The same for networks and for engines, which have one field more.
    nvinfer1::IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return guarded(
            [&]() -> nvinfer1::IPluginV3* {
                return new Plugin(fields == nullptr ? Node::from_fields(nullptr, 0)
                                                    : Node::from_fields(fields->fields, fields->nbFields));
            },
            static_cast<nvinfer1::IPluginV3*>(nullptr));
    }
};

#else  // TensorRT 8

class Plugin : public nvinfer1::IPluginV2DynamicExt {
   public:
    explicit Plugin(Node node) : node_(std::move(node)) {}

    const char* getPluginType() const noexcept override { return kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
    void setPluginNamespace(const char* name) noexcept override { namespace_ = name == nullptr ? "" : name; }
    int32_t getNbOutputs() const noexcept override { return kNumOutputs; }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void destroy() noexcept override { delete this; }

    IPluginV2DynamicExt* clone() const noexcept override {
        return guarded(
            [&]() -> IPluginV2DynamicExt* {
                Plugin* copy = new Plugin(node_);
                copy->namespace_ = namespace_;
                return copy;
            },
            static_cast<IPluginV2DynamicExt*>(nullptr));
    }

    size_t getSerializationSize() const noexcept override {
        return guarded([&] { return node_.to_bytes().size(); }, size_t{0});
    }

    void serialize(void* buffer) const noexcept override {
        guarded(
            [&] {
                const std::string bytes = node_.to_bytes();
                bytes.copy(static_cast<char*>(buffer), bytes.size());
                return 0;
            },
            -1);
    }

    DataType getOutputDataType(int32_t output, const DataType*, int32_t) const noexcept override {
        return output_type(output);
    }

    // No dimensions, which TensorRT refuses, is all that this version can answer where shapes do not fit.
    DimsExprs getOutputDimensions(int32_t output, const DimsExprs* inputs, int32_t num_inputs,
                                  IExprBuilder& expressions) noexcept override {
        DimsExprs none = {};
        none.nbDims = -1;
        return guarded(
            [&] {
                node_.set_num_inputs(num_inputs);
                node_.require_shapes(shapes_of(inputs, num_inputs));
                return output_shape(node_, output, inputs, expressions);
            },
            none);
    }

    bool supportsFormatCombination(int32_t place, const PluginTensorDesc* tensors, int32_t num_inputs,
                                   int32_t) noexcept override {
        return node_.supports(place, tensors, num_inputs);
    }

    // Cannot fail in this version of the interface: what it finds stops `enqueue`.
    void configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t num_inputs, const DynamicPluginTensorDesc*,
                         int32_t) noexcept override {
        is_configured_ = guarded(
            [&] {
                node_.set_num_inputs(num_inputs);
                node_.require_shapes(shapes_of(inputs, num_inputs));
                return true;
            },
            false);
    }

    size_t getWorkspaceSize(const PluginTensorDesc* inputs, int32_t, const PluginTensorDesc*,
                            int32_t) const noexcept override {
        return node_.workspace_size(inputs[1].dims);
    }

    int32_t enqueue(const PluginTensorDesc* descriptions, const PluginTensorDesc*, const void* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        if (!is_configured_) return -1;
        return guarded([&] { return node_.enqueue(descriptions, inputs, outputs, workspace, stream); }, -1);
    }

   private:
    Node node_;
    bool is_configured_ = true;  // an engine may run a plugin as it was when it was built
    std::string namespace_;
};

class Creator : public nvinfer1::IPluginCreator {
   public:
    const char* getPluginName() const noexcept override { return kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
    void setPluginNamespace(const char* name) noexcept override { namespace_ = name == nullptr ? "" : name; }
    const PluginFieldCollection* getFieldNames() noexcept override { return known_fields(); }

    nvinfer1::IPluginV2* createPlugin(const char*, const PluginFieldCollection* fields) noexcept override {
        return guarded(
            [&] {
                return created(fields == nullptr ? Node::from_fields(nullptr, 0)
                                                 : Node::from_fields(fields->fields, fields->nbFields));
            },
            static_cast<nvinfer1::IPluginV2*>(nullptr));
    }

    nvinfer1::IPluginV2* deserializePlugin(const char*, const void* data, size_t size) noexcept override {
        return guarded([&] { return created(Node::from_bytes(data, size)); },
                       static_cast<nvinfer1::IPluginV2*>(nullptr));
    }

   private:
    nvinfer1::IPluginV2* created(Node node) const {
        Plugin* plugin = new Plugin(std::move(node));
        plugin->setPluginNamespace(namespace_.c_str());
        return plugin;
    }

    std::string namespace_;
};

#endif

}  // namespace

#if NV_TENSORRT_MAJOR >= 10
using AnyCreator = nvinfer1::IPluginCreatorV3One;
#else
using AnyCreator = nvinfer1::IPluginCreator;
#endif

// For programs that the plugin is linked into.
AnyCreator& decode_nms_creator() {
    static Creator creator;
    return creator;
}

namespace {

struct Registration {
    Registration() {
        nvinfer1::IPluginRegistry* registry = getPluginRegistry();
        if (registry != nullptr) registry->registerCreator(decode_nms_creator(), "");
    }
};

const Registration registration;

}  // namespace

}  // namespace tensorrt
}  // namespace boxwright
