// nvinfer's way from the outputs of a Boxwright model to objects. The outputs are known by their names, Boxwright's own
// or those of EfficientNMS; boxes are corners in pixels of the network's input.
//
//   g++ -shared -fPIC -O2 -o libnvdsinfer_boxwright.so nvdsinfer_boxwright.cpp
//       -I/opt/nvidia/deepstream/deepstream/sources/includes -I/usr/local/cuda/include

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <iostream>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

const void* find_output(const std::vector<NvDsInferLayerInfo>& outputs, std::initializer_list<const char*> names) {
    for (const NvDsInferLayerInfo& output : outputs) {
        for (const char* name : names) {
            if (std::strcmp(output.layerName, name) == 0) {
                return output.buffer;
            }
        }
    }
    return nullptr;
}

}  // namespace

extern "C" bool NvDsInferParseBoxwright(std::vector<NvDsInferLayerInfo> const& outputs,
                                        NvDsInferNetworkInfo const& network,
                                        NvDsInferParseDetectionParams const& parameters,
                                        std::vector<NvDsInferParseObjectInfo>& objects) {
    const auto* count = static_cast<const int*>(find_output(outputs, {"num_detections", "num_dets"}));
    const auto* boxes = static_cast<const float*>(find_output(outputs, {"boxes", "det_boxes"}));
    const auto* scores = static_cast<const float*>(find_output(outputs, {"scores", "det_scores"}));
    const auto* class_ids = static_cast<const int*>(find_output(outputs, {"class_ids", "det_classes"}));
    if (count == nullptr || boxes == nullptr || scores == nullptr || class_ids == nullptr) {
        std::cerr << "boxwright: expected the outputs num_detections, boxes, scores and class_ids, got others; export "
                     "the model with --format deepstream\n";
        return false;
    }
    const float right = static_cast<float>(network.width), bottom = static_cast<float>(network.height);
    for (int index = 0; index < *count; ++index) {
        const int class_id = class_ids[index];
        if (class_id < 0 || static_cast<unsigned>(class_id) >= parameters.numClassesConfigured ||
            scores[index] < parameters.perClassPreclusterThreshold[static_cast<unsigned>(class_id)]) {
            continue;
        }
        const float* box = boxes + 4 * index;
        const float x1 = std::clamp(box[0], 0.0f, right), y1 = std::clamp(box[1], 0.0f, bottom);
        const float x2 = std::clamp(box[2], 0.0f, right), y2 = std::clamp(box[3], 0.0f, bottom);
        if (x2 <= x1 || y2 <= y1) {
            continue;
        }
        NvDsInferParseObjectInfo object{};
        object.classId = static_cast<unsigned>(class_id);
        object.detectionConfidence = scores[index];
        object.left = x1;
        object.top = y1;
        object.width = x2 - x1;
        object.height = y2 - y1;
        objects.push_back(object);
    }
    return true;
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseBoxwright);
