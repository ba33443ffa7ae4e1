// The manifest of a model file, as far as running it needs; the meaning is that of boxwright/core.
#ifndef BOXWRIGHT_SDK_MANIFEST_H
#define BOXWRIGHT_SDK_MANIFEST_H

#include <string>
#include <vector>

#include "decode_nms.h"
#include "letterbox.h"

namespace boxwright {

struct Preprocess {
    int64_t height = 0;
    int64_t width = 0;
    std::string resize;
    int64_t shortest_edge = 0;
    int64_t max_size = 0;
    LetterboxParameters fixed;  // what does not depend on the image

    // Where an image of this size will lie; throws Error where it is too small or thin.
    LetterboxParameters plan(int64_t image_height, int64_t image_width) const;
};

struct Manifest {
    std::vector<std::string> class_names;
    Preprocess preprocess;
    DecodeNmsAttributes attributes;
    std::vector<float> priors;  // (N, 4); empty where the graph gives them or the coding needs none
    bool takes_pixels = false;      // the graph preprocesses, and its detections are in pixels of the image
    bool gives_detections = false;
    bool has_nms = false;
    float score_threshold = 0.0f;
    float iou_threshold = 0.0f;

    int64_t num_anchors() const { return priors.empty() ? -1 : static_cast<int64_t>(priors.size() / 4); }  // -1: open
    int64_t num_logits() const {
        return static_cast<int64_t>(class_names.size()) + (attributes.background_class >= 0 ? 1 : 0);
    }
};

// Throws Error where the text is no manifest, or one that this SDK cannot run.
Manifest read_manifest(const std::string& text);

}  // namespace boxwright

#endif
