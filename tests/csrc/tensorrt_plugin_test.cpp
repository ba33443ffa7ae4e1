// The TensorRT plugin without a GPU: created from fields, asked for its shapes and types, written and read again, given
// what does not fit, and run, the CUDA kernels being emulated.
//
// TensorRT itself is played by this file, so that every generation whose headers there are is tested. With
// -DBOXWRIGHT_TENSORRT_LIBRARY the real library plays itself: the plugin, compiled by nvcc, is loaded from the path in
// the first argument, and found in TensorRT's registry. It is not run then.
#include <NvInfer.h>
#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "decode_nms_cuda.h"

using namespace nvinfer1;

// ---- TensorRT, or what plays it ----

#if NV_TENSORRT_MAJOR >= 10
using Size = int64_t;
using AnyPlugin = IPluginV3;
using AnyCreator = IPluginCreatorV3One;
#else
using Size = int32_t;
using AnyPlugin = IPluginV2DynamicExt;
using AnyCreator = IPluginCreator;
#endif

std::string logged;
AnyCreator* found_creator = nullptr;

#if !defined(BOXWRIGHT_TENSORRT_LIBRARY)

#include "emulated_block.h"

class Logger : public ILogger {
   public:
    void log(Severity severity, const char* text) noexcept override {
        if (severity == Severity::kERROR) logged += text;
    }
};

extern "C" ILogger* getLogger() noexcept {
    static Logger logger;
    return &logger;
}

extern "C" IPluginRegistry* getPluginRegistry() noexcept { return nullptr; }

int boxwright::decode_nms_cuda_enqueue(const DecodeNmsAttributes& attributes, const DecodeNmsCudaInputs& inputs,
                                       const DecodeNmsOutputs& outputs, void* workspace, CUstream_st*) {
    cuda::emulate_decode_nms(attributes, inputs, outputs, workspace, cuda::ThreadOrder::shuffled);
    return 0;
}

namespace boxwright {
namespace tensorrt {
AnyCreator& decode_nms_creator();
}
}  // namespace boxwright

void find_creator() { found_creator = &boxwright::tensorrt::decode_nms_creator(); }

#else

void find_creator() { found_creator = getPluginRegistry()->getPluginCreator("DecodeNMS", "1", ""); }

#endif

#if defined(BOXWRIGHT_TENSORRT_LIBRARY)
#define CHECK_LOGGED(text)  // the library has no logger before it has a builder
#else
#define CHECK_LOGGED(text) CHECK(logged.find(text) != std::string::npos)
#endif

// A size of a dynamic shape; -1 for one that is not known.
class Expression : public apiv::VDimensionExpr, public IDimensionExpr {
   public:
    explicit Expression(Size value) : value_(value) { mImpl = this; }
    bool isConstant() const noexcept override { return value_ >= 0; }
    Size getConstantValue() const noexcept override { return value_; }
#if NV_TENSORRT_MAJOR >= 10
    bool isSizeTensor() const noexcept override { return false; }
#endif

   private:
    Size value_;
};

class Expressions : public apiv::VExprBuilder, public IExprBuilder {
   public:
    Expressions() { mImpl = this; }
    const IDimensionExpr* constant(Size value) noexcept override {
        all_.push_back(std::make_unique<Expression>(value));
        return all_.back().get();
    }
    const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) noexcept override {
        return nullptr;
    }
#if NV_TENSORRT_MAJOR >= 10
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) noexcept override {
        return nullptr;
    }
#endif

   private:
    std::vector<std::unique_ptr<Expression>> all_;
};

// ---- fields and shapes ----

// Fields as an ONNX parser makes them: texts end with a zero, integers have 32 bits.
class Fields {
   public:
    Fields& add(const char* name, const std::string& text) {
        return add(name, PluginFieldType::kCHAR, text.c_str(), text.size() + 1, 1);
    }
    Fields& add(const char* name, std::vector<int32_t> numbers) {
        return add(name, PluginFieldType::kINT32, numbers.data(), numbers.size(), 4);
    }
    Fields& add(const char* name, std::vector<float> numbers) {
        return add(name, PluginFieldType::kFLOAT32, numbers.data(), numbers.size(), 4);
    }

    const PluginFieldCollection* get() {
        views_.clear();
        for (const auto& [name, type, length, data] : owned_) {
            views_.emplace_back(name.c_str(), data.data(), type, static_cast<int32_t>(length));
        }
        collection_ = {static_cast<int32_t>(views_.size()), views_.data()};
        return &collection_;
    }

   private:
    struct Owned {
        std::string name;
        PluginFieldType type;
        size_t length;
        std::vector<char> data;
    };

    Fields& add(const char* name, PluginFieldType type, const void* data, size_t length, size_t size) {
        const char* begin = static_cast<const char*>(data);
        owned_.push_back({name, type, length, std::vector<char>(begin, begin + length * size)});
        return *this;
    }

    std::vector<Owned> owned_;
    std::vector<PluginField> views_;
    PluginFieldCollection collection_;
};

Fields yolox_fields(int32_t max_detections = 40) {
    Fields fields;
    fields.add("box_coding", "yolox")
        .add("score_activation", "sigmoid")
        .add("objectness_activation", "sigmoid")
        .add("score_combination", "multiply")
        .add("overlap", "diou")
        .add("top_k_scope", "level")
        .add("level_sizes", std::vector<int32_t>{200, 101})
        .add("pre_nms_top_k", std::vector<int32_t>{120})
        .add("multi_label", std::vector<int32_t>{1})
        .add("box_weights", std::vector<float>{10.0f, 10.0f, 5.0f, 5.0f})
        .add("min_size", std::vector<float>{0.5f})
        .add("max_detections", std::vector<int32_t>{max_detections});
    return fields;
}

constexpr int32_t kBatch = 2, kAnchors = 301, kClasses = 5, kTop = 40;
using Shapes = std::vector<std::vector<Size>>;
const Shapes kShapes = {{kBatch, kAnchors, 4}, {kBatch, kAnchors, kClasses}, {1}, {}, {kBatch, kAnchors}, {kAnchors, 4}};

struct Release {
    void operator()(AnyPlugin* plugin) const {
#if NV_TENSORRT_MAJOR >= 10
        delete plugin;
#else
        plugin->destroy();
#endif
    }
};
using PluginPointer = std::unique_ptr<AnyPlugin, Release>;

PluginPointer create(const PluginFieldCollection* fields) {
#if NV_TENSORRT_MAJOR >= 10
    return PluginPointer(found_creator->createPlugin("node", fields, TensorRTPhase::kBUILD));
#else
    return PluginPointer(static_cast<AnyPlugin*>(found_creator->createPlugin("node", fields)));
#endif
}

// ---- what the generations say differently ----

#if NV_TENSORRT_MAJOR >= 10
IPluginV3OneBuild& builder_of(AnyPlugin& plugin) {
    return *static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}
IPluginV3OneRuntime& runtime_of(AnyPlugin& plugin) {
    return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}
#endif

// As an engine carries it: written, and read by another creator.
PluginPointer carried(AnyPlugin& plugin) {
#if NV_TENSORRT_MAJOR >= 10
    const PluginFieldCollection* fields = runtime_of(plugin).getFieldsToSerialize();
    return PluginPointer(found_creator->createPlugin("node", fields, TensorRTPhase::kRUNTIME));
#else
    std::vector<char> bytes(plugin.getSerializationSize());
    plugin.serialize(bytes.data());
    return PluginPointer(static_cast<AnyPlugin*>(found_creator->deserializePlugin("node", bytes.data(), bytes.size())));
#endif
}

// Shapes of the four outputs; empty where the plugin refuses the inputs'.
Shapes output_shapes(AnyPlugin& plugin, const Shapes& inputs) {
    Expressions expressions;
    std::vector<DimsExprs> given(inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
        given[i].nbDims = static_cast<int32_t>(inputs[i].size());
        for (size_t axis = 0; axis < inputs[i].size(); ++axis) given[i].d[axis] = expressions.constant(inputs[i][axis]);
    }
    const int32_t count = static_cast<int32_t>(inputs.size());
    DimsExprs outputs[4] = {};
#if NV_TENSORRT_MAJOR >= 10
    IPluginV3OneBuild& builder = builder_of(plugin);
    CHECK(builder.getNbOutputs() == 4);
    if (builder.getOutputShapes(given.data(), count, nullptr, 0, outputs, 4, expressions) != 0) return {};
#else
    CHECK(plugin.getNbOutputs() == 4);
    for (int32_t i = 0; i < 4; ++i) outputs[i] = plugin.getOutputDimensions(i, given.data(), count, expressions);
    if (outputs[0].nbDims < 0) return {};
#endif
    Shapes shapes;
    for (const DimsExprs& output : outputs) {
        shapes.emplace_back();
        for (int32_t axis = 0; axis < output.nbDims; ++axis) shapes.back().push_back(output.d[axis]->getConstantValue());
    }
    return shapes;
}

Dims dims_of(const std::vector<Size>& sizes) {
    Dims dims = {};
    dims.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t axis = 0; axis < sizes.size(); ++axis) dims.d[axis] = sizes[axis];
    return dims;
}

std::vector<DynamicPluginTensorDesc> descriptions_of(const Shapes& shapes, DataType head_type) {
    std::vector<DynamicPluginTensorDesc> descriptions(shapes.size());
    for (size_t i = 0; i < shapes.size(); ++i) {
        const bool is_head = i < 2 || i == 4;
        descriptions[i].desc.dims = descriptions[i].max = descriptions[i].min = dims_of(shapes[i]);
        descriptions[i].desc.type = is_head ? head_type : DataType::kFLOAT;
        descriptions[i].desc.format = TensorFormat::kLINEAR;
    }
    return descriptions;
}

bool supports(AnyPlugin& plugin, const std::vector<DynamicPluginTensorDesc>& tensors, size_t place) {
    const int32_t count = static_cast<int32_t>(tensors.size()) - 4;
#if NV_TENSORRT_MAJOR >= 10
    return builder_of(plugin).supportsFormatCombination(static_cast<int32_t>(place), tensors.data(), count, 4);
#else
    std::vector<PluginTensorDesc> plain;
    for (const DynamicPluginTensorDesc& tensor : tensors) plain.push_back(tensor.desc);
    return plugin.supportsFormatCombination(static_cast<int32_t>(place), plain.data(), count, 4);
#endif
}

size_t workspace_size(AnyPlugin& plugin, const std::vector<DynamicPluginTensorDesc>& inputs) {
#if NV_TENSORRT_MAJOR >= 10
    return builder_of(plugin).getWorkspaceSize(inputs.data(), static_cast<int32_t>(inputs.size()), nullptr, 4);
#else
    std::vector<PluginTensorDesc> plain;
    for (const DynamicPluginTensorDesc& input : inputs) plain.push_back(input.desc);
    return plugin.getWorkspaceSize(plain.data(), static_cast<int32_t>(plain.size()), nullptr, 4);
#endif
}

// ---- tests ----

TEST(the_creator_is_found_and_names_its_fields) {
    CHECK(found_creator != nullptr);
    if (found_creator == nullptr) std::exit(1);
    CHECK(std::string(found_creator->getPluginName()) == "DecodeNMS");
    CHECK(std::string(found_creator->getPluginVersion()) == "1");
    CHECK(std::string(found_creator->getPluginNamespace()).empty());
    const PluginFieldCollection* fields = found_creator->getFieldNames();
    CHECK(fields->nbFields == 20);
    CHECK(std::string(fields->fields[0].name) == "box_coding");
}

TEST(it_tells_the_shapes_of_its_outputs) {
    const PluginPointer plugin = create(yolox_fields().get());
    CHECK(plugin != nullptr);
    const Shapes expected = {{kBatch, 1}, {kBatch, kTop, 4}, {kBatch, kTop}, {kBatch, kTop}};
    CHECK(output_shapes(*plugin, kShapes) == expected);
    Shapes dynamic = kShapes;
    for (const size_t place : {0, 1, 4}) dynamic[place][0] = -1;
    const Shapes open = output_shapes(*plugin, dynamic);
    CHECK(open.size() == 4 && open[1] == (std::vector<Size>{-1, kTop, 4}));
    Shapes with_item_priors = kShapes;
    with_item_priors[5] = {kBatch, kAnchors, 4};
    CHECK(output_shapes(*plugin, with_item_priors) == expected);
}

TEST(an_engine_carries_every_attribute) {
    const PluginPointer plugin = create(yolox_fields(17).get());
    CHECK(!output_shapes(*plugin, kShapes).empty());
    const PluginPointer read = carried(*plugin);
    CHECK(read != nullptr);
    const PluginPointer again = carried(*read);
    CHECK(again != nullptr && output_shapes(*again, kShapes)[2] == (std::vector<Size>{kBatch, 17}));
#if NV_TENSORRT_MAJOR < 10
    std::vector<char> first(plugin->getSerializationSize()), last(again->getSerializationSize());
    plugin->serialize(first.data());
    again->serialize(last.data());
    CHECK(first == last);
    for (size_t size = 0; size < first.size(); ++size) {  // an engine that lost its end
        const std::vector<char> part(first.begin(), first.begin() + static_cast<long>(size));
        CHECK(found_creator->deserializePlugin("node", part.data(), part.size()) == nullptr);
    }
    std::vector<char> garbage(200, '\xEE');
    CHECK(found_creator->deserializePlugin("node", garbage.data(), garbage.size()) == nullptr);
    const std::unique_ptr<AnyPlugin, Release> copy(again->clone());
    CHECK(copy->getSerializationSize() == first.size());
    CHECK(std::string(copy->getPluginType()) == "DecodeNMS");
#else
    const PluginFieldCollection* first = runtime_of(*plugin).getFieldsToSerialize();
    const PluginFieldCollection* last = runtime_of(*again).getFieldsToSerialize();
    CHECK(first->nbFields == 13 && last->nbFields == 13);
    for (int32_t i = 0; i < first->nbFields; ++i) {
        const PluginField &a = first->fields[i], &b = last->fields[i];
        const size_t bytes = static_cast<size_t>(a.length) * (a.type == PluginFieldType::kCHAR ? 1 : 4);
        CHECK(std::string(a.name) == b.name && a.type == b.type && a.length == b.length);
        CHECK(std::memcmp(a.data, b.data, bytes) == 0);
    }
    const PluginPointer copy(again->clone());
    CHECK(output_shapes(*copy, kShapes)[2] == (std::vector<Size>{kBatch, 17}));
#endif
}

TEST(heads_may_be_half_precision_and_nothing_else) {
    const PluginPointer plugin = create(yolox_fields().get());
    Shapes all = kShapes;
    for (const auto& shape : output_shapes(*plugin, kShapes)) all.push_back(shape);
    std::vector<DynamicPluginTensorDesc> tensors = descriptions_of(all, DataType::kHALF);
    tensors[6].desc.type = tensors[9].desc.type = DataType::kINT32;
    for (size_t place = 0; place < tensors.size(); ++place) CHECK(supports(*plugin, tensors, place));
    for (size_t place = 0; place < tensors.size(); ++place) {
        const DynamicPluginTensorDesc before = tensors[place];
        const bool is_head = place < 2 || place == 4;
        tensors[place].desc.type = DataType::kINT8;
        CHECK(!supports(*plugin, tensors, place));
        tensors[place].desc.type = DataType::kHALF;
        CHECK(supports(*plugin, tensors, place) == is_head);
        tensors[place] = before;
        tensors[place].desc.format = TensorFormat::kCHW4;
        CHECK(!supports(*plugin, tensors, place));
        tensors[place] = before;
    }
}

TEST(the_workspace_is_that_of_the_largest_shapes) {
    const PluginPointer plugin = create(yolox_fields().get());
    std::vector<DynamicPluginTensorDesc> inputs = descriptions_of(kShapes, DataType::kFLOAT);
    const size_t size = workspace_size(*plugin, inputs);
    CHECK(size >= static_cast<size_t>(kBatch * kAnchors * kClasses) * 8);
    inputs[1].desc.dims.d[0] = inputs[1].max.d[0] = 8;
    CHECK(workspace_size(*plugin, inputs) >= 4 * (size - 1024));
}

TEST(attributes_that_are_none_are_refused_with_words) {
    struct Bad {
        Fields fields;
        const char* expected;
    };
    std::vector<Bad> bad;
    bad.push_back({Fields().add("box_coding", "yolov9"), "box_coding: expected a known name, got yolov9"});
    bad.push_back({Fields().add("max_detections", std::vector<int32_t>{0}), "max_detections: expected a number from 1"});
    bad.push_back({Fields().add("max_detections", std::vector<int32_t>{1, 2}), "max_detections: expected one number, got 2"});
    bad.push_back({Fields().add("max_detections", std::vector<float>{3.0f}), "max_detections: expected plugin field type"});
    bad.push_back({Fields().add("box_weights", std::vector<float>{1.0f}), "box_weights: expected four numbers, got 1"});
    bad.push_back({Fields().add("multi_label", std::vector<int32_t>{2}), "multi_label: expected 0 or 1, got 2"});
    bad.push_back({Fields().add("iou", std::vector<float>{0.5f}), "an unknown one, iou"});
    bad.push_back({Fields().add("min_size", std::vector<float>{-1.0f}), "min_size: expected a number >= 0"});
    bad.push_back({Fields().add("box_coding", "yolov5"), "level_strides: expected one stride"});
    for (Bad& one : bad) {
        logged.clear();
        CHECK(create(one.fields.get()) == nullptr);
        CHECK_LOGGED(one.expected);
    }
    CHECK(create(nullptr) != nullptr);  // all attributes have defaults
}

TEST(shapes_that_do_not_fit_are_refused_with_words) {
    struct Bad {
        Shapes shapes;
        const char* expected;
    };
    const auto with = [](size_t place, std::vector<Size> shape) {
        Shapes shapes = kShapes;
        shapes[place] = std::move(shape);
        return shapes;
    };
    const Bad bad[] = {
        {with(0, {kBatch, kAnchors, 5}), "box_regression: expected shape (2, 301, 4), got (2, 301, 5)"},
        {with(0, {kBatch, kAnchors}), "box_regression: expected shape (2, 301, 4), got (2, 301)"},
        {with(1, {kBatch, kAnchors}), "class_logits: expected shape (?, ?, ?), got (2, 301)"},
        {with(2, {2}), "score_threshold: expected one number, got shape (2)"},
        {with(4, {kBatch, 7}), "objectness: expected shape (2, 301), got (2, 7)"},
        {with(5, {7, 4}), "priors: expected shape (301, 4), got (7, 4)"},
        {with(1, {kBatch, kAnchors, 0}), "at least one class"},
        {{kShapes[0], kShapes[1], kShapes[2], kShapes[3], kShapes[4]}, "expected 6 inputs for these attributes, got 5"},
        {{kShapes[0]}, "expected 6 inputs for these attributes, got 1"},
    };
    for (const Bad& one : bad) {
        logged.clear();
        CHECK(output_shapes(*create(yolox_fields().get()), one.shapes).empty());
        CHECK_LOGGED(one.expected);
    }
    Shapes fewer = kShapes;
    for (const size_t place : {0, 1, 4}) fewer[place][1] = 300;
    fewer[5][0] = 300;
    CHECK(output_shapes(*create(yolox_fields().get()), fewer).empty());
    CHECK_LOGGED("level_sizes: expected numbers that sum to N = 300, got 301");
}

#if !defined(BOXWRIGHT_TENSORRT_LIBRARY)

// Runs a plugin that came out of an engine, which only its runtime has configured.
TEST(it_runs) {
    const PluginPointer built = create(yolox_fields().get());
    std::vector<DynamicPluginTensorDesc> inputs = descriptions_of(kShapes, DataType::kFLOAT);
    const int32_t num_inputs = static_cast<int32_t>(inputs.size());
    CHECK(!output_shapes(*built, kShapes).empty());
    const PluginPointer plugin = carried(*built);
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<std::vector<float>> tensors;
    for (const auto& shape : kShapes) {
        size_t size = 1;
        for (const Size length : shape) size *= static_cast<size_t>(length);
        tensors.emplace_back(size);
        for (float& value : tensors.back()) value = normal(random);
    }
    tensors[2] = {0.1f};
    tensors[3] = {0.5f};
    for (float& value : tensors[5]) value = 50.0f + 20.0f * value;
    std::vector<const void*> pointers;
    for (const auto& tensor : tensors) pointers.push_back(tensor.data());
    std::vector<int32_t> counts(kBatch, -7), class_ids(kBatch * kTop, -7), expected_counts = counts;
    std::vector<float> boxes(kBatch * kTop * 4, -7.0f), scores(kBatch * kTop, -7.0f), expected_scores = scores;
    void* outputs[] = {counts.data(), boxes.data(), scores.data(), class_ids.data()};
    std::vector<PluginTensorDesc> plain;
    for (const DynamicPluginTensorDesc& input : inputs) plain.push_back(input.desc);
    std::vector<char> workspace(workspace_size(*plugin, inputs));
#if NV_TENSORRT_MAJOR >= 10
    CHECK(runtime_of(*plugin).onShapeChange(plain.data(), num_inputs, nullptr, 4) == 0);
    IPluginV3OneRuntime& runtime = runtime_of(*plugin);
#else
    plugin->configurePlugin(inputs.data(), num_inputs, nullptr, 4);
    AnyPlugin& runtime = *plugin;
#endif
    CHECK(runtime.enqueue(plain.data(), nullptr, pointers.data(), outputs, workspace.data(), nullptr) == 0);

    boxwright::DecodeNmsAttributes attributes;
    attributes.box_coding = boxwright::BoxCoding::yolox;
    attributes.score_combination = boxwright::Combination::multiply;
    attributes.overlap = boxwright::Overlap::diou;
    attributes.top_k_scope = boxwright::TopKScope::level;
    attributes.level_sizes = {200, 101};
    attributes.pre_nms_top_k = 120;
    attributes.multi_label = true;
    attributes.min_size = 0.5f;
    attributes.max_detections = kTop;
    boxwright::DecodeNmsInputs expected;
    expected.batch_size = kBatch;
    expected.num_anchors = kAnchors;
    expected.num_classes = kClasses;
    expected.box_regression = {tensors[0].data(), kAnchors * 4, 4, 1};
    expected.class_logits = {tensors[1].data(), kAnchors * kClasses, kClasses, 1};
    expected.objectness = {tensors[4].data(), kAnchors, 1, 1};
    expected.priors = {tensors[5].data(), 0, 4, 1};
    expected.score_threshold = 0.1f;
    expected.iou_threshold = 0.5f;
    std::vector<int32_t> expected_class_ids(kBatch * kTop);
    std::vector<float> expected_boxes(kBatch * kTop * 4);
    boxwright::DecodeNmsWorkspace cpu_workspace;
    boxwright::decode_nms(
        attributes, expected,
        {expected_counts.data(), expected_boxes.data(), expected_scores.data(), expected_class_ids.data()},
        cpu_workspace);
    CHECK(counts[0] > 5 && counts == expected_counts);
    CHECK(boxes == expected_boxes && scores == expected_scores && class_ids == expected_class_ids);
}

#endif

int main(int count, char** arguments) {
    if (count > 1 && dlopen(arguments[1], RTLD_NOW) == nullptr) {
        std::printf("%s\n", dlerror());
        return 1;
    }
    find_creator();
    return run_all_tests();
}
