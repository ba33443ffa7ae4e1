#include "decode_nms.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "candidates.h"
#include "ranking.h"
#include "suppression.h"

namespace boxwright {

namespace {

// What one image needs.
struct ItemWorkspace {
    CandidateBuffers candidates;
    RankingBuffers ranking;
    KeptBoxes kept;
    std::vector<int64_t> num_in_scope;
};

const float* item_of(const AnchorRows& rows, int64_t item) {
    return rows.data == nullptr ? nullptr : rows.data + item * rows.batch_stride;
}

AnchorRows row_view(const AnchorRows& rows, int64_t item) {
    return {item_of(rows, item), 0, rows.anchor_stride, rows.number_stride};
}

void load_four(const AnchorRows& rows, int64_t anchor, int64_t first, float numbers[4]) {
    const float* row = rows.data + anchor * rows.anchor_stride + first * rows.number_stride;
    for (int i = 0; i < 4; ++i) numbers[i] = row[i * rows.number_stride];
}

// Boxes of one image.
class BoxDecoder {
   public:
    BoxDecoder(const DecodeNmsAttributes& attributes, const DecodeNmsInputs& inputs, int64_t item)
        : attributes_(attributes),
          regression_(row_view(inputs.box_regression, item)),
          priors_(row_view(inputs.priors, item)) {
        parameters_.coding = attributes.box_coding;
        std::copy(std::begin(attributes.box_weights), std::end(attributes.box_weights), parameters_.weights);
        parameters_.delta_clip = attributes.delta_clip;
        parameters_.stride = 1.0f;
        parameters_.scale_xy = 1.0f;
        if (attributes.clip_to_image) {
            height_ = inputs.image_size_hw[2 * item];
            width_ = inputs.image_size_hw[2 * item + 1];
        }
    }

    // False where the pair has no usable box.
    bool decode(int64_t anchor, int64_t class_index, Box& box) {
        float raw[4], prior_numbers[4];
        load_four(regression_, anchor, attributes_.class_specific_boxes ? 4 * class_index : 0, raw);
        if (priors_.data != nullptr) load_four(priors_, anchor, 0, prior_numbers);
        const float* prior = priors_.data == nullptr ? nullptr : prior_numbers;
        if (!are_finite(raw, prior)) return false;
        if (needs_stride(parameters_.coding)) choose_level(anchor);
        box = decode_box(raw, prior, parameters_);
        if (!is_finite(box)) return false;
        if (attributes_.clip_to_image) {
            box = clip_box(box, height_, width_);
            if (!is_finite(box)) return false;  // an image size that is no number
        }
        const float min_size = attributes_.min_size;
        return !(min_size > 0.0f) || (box.x2 - box.x1 >= min_size && box.y2 - box.y1 >= min_size);
    }

    size_t level_of(int64_t anchor) const {
        size_t level = 0;
        for (int64_t end = attributes_.level_sizes[0]; anchor >= end; end += attributes_.level_sizes[level]) ++level;
        return level;
    }

   private:
    void choose_level(int64_t anchor) {
        const size_t level = level_of(anchor);
        parameters_.stride = attributes_.level_strides[level];
        if (!attributes_.level_scale_xy.empty()) parameters_.scale_xy = attributes_.level_scale_xy[level];
    }

    const DecodeNmsAttributes& attributes_;
    const AnchorRows regression_;
    const AnchorRows priors_;
    CodingParameters parameters_ = {};
    float height_ = 0.0f;
    float width_ = 0.0f;
};

// Counts the candidates of each scope and says when one is full.
class TopK {
   public:
    TopK(const DecodeNmsAttributes& attributes, int64_t num_classes, std::vector<int64_t>& num_in_scope)
        : limit_(attributes.pre_nms_top_k), scope_(attributes.top_k_scope), num_in_scope_(num_in_scope) {
        size_t num_scopes = 1;
        if (scope_ == TopKScope::class_) num_scopes = static_cast<size_t>(num_classes);
        if (scope_ == TopKScope::level) num_scopes = attributes.level_sizes.size();
        num_in_scope.assign(num_scopes, 0);
    }

    bool takes(int64_t anchor, int64_t class_index, const BoxDecoder& decoder) {
        if (limit_ == 0) return true;
        size_t scope = 0;
        if (scope_ == TopKScope::class_) scope = static_cast<size_t>(class_index);
        if (scope_ == TopKScope::level) scope = decoder.level_of(anchor);
        if (num_in_scope_[scope] == limit_) return false;
        ++num_in_scope_[scope];
        return true;
    }

    // Whether no further candidate can be taken.
    bool is_full() const { return limit_ > 0 && scope_ == TopKScope::image && num_in_scope_[0] == limit_; }

   private:
    const int64_t limit_;
    const TopKScope scope_;
    std::vector<int64_t>& num_in_scope_;
};

struct ItemOutputs {
    int32_t* num_detections;
    float* boxes;
    float* scores;
    int32_t* class_ids;
};

ItemOutputs outputs_of(const DecodeNmsOutputs& outputs, int64_t item, int64_t max_detections) {
    const int64_t begin = item * max_detections;
    return {outputs.num_detections + item, outputs.boxes + 4 * begin, outputs.scores + begin,
            outputs.class_ids + begin};
}

void write_detection(const ItemOutputs& outputs, int64_t place, const Box& box, float score, int64_t class_id) {
    outputs.boxes[4 * place] = box.x1;
    outputs.boxes[4 * place + 1] = box.y1;
    outputs.boxes[4 * place + 2] = box.x2;
    outputs.boxes[4 * place + 3] = box.y2;
    outputs.scores[place] = score;
    outputs.class_ids[place] = static_cast<int32_t>(class_id);
}

void write_padding(const ItemOutputs& outputs, int64_t begin, int64_t end) {
    std::fill(outputs.boxes + 4 * begin, outputs.boxes + 4 * end, 0.0f);
    std::fill(outputs.scores + begin, outputs.scores + end, 0.0f);
    std::fill(outputs.class_ids + begin, outputs.class_ids + end, -1);
}

// Goes through the candidates in rank order until the outputs are full; returns how many detections there are.
int64_t keep_best(const DecodeNmsAttributes& attributes, const DecodeNmsInputs& inputs, int64_t item,
                  const ItemOutputs& outputs, ItemWorkspace& workspace, const VectorKernels& kernels) {
    BoxDecoder decoder(attributes, inputs, item);
    TopK top_k(attributes, inputs.num_classes, workspace.num_in_scope);
    Ranking ranking(workspace.candidates.keys, workspace.ranking);
    workspace.kept.clear(attributes.class_agnostic ? 1 : static_cast<size_t>(inputs.num_classes));
    int64_t num_kept = 0;
    const uint32_t num_anchors = static_cast<uint32_t>(inputs.num_anchors);
    uint64_t key = 0;
    while (num_kept < attributes.max_detections && !top_k.is_full() && ranking.next(key)) {
        const int64_t class_index = pair_of(key) / num_anchors;
        const int64_t anchor = pair_of(key) % num_anchors;
        Box box;
        if (!top_k.takes(anchor, class_index, decoder) || !decoder.decode(anchor, class_index, box)) continue;
        const float area = box_area(box);
        if (attributes.with_nms && area > 0.0f) {  // a box without area overlaps nothing
            const size_t chain = attributes.class_agnostic ? 0 : static_cast<size_t>(class_index);
            const KeptBoxes& kept = workspace.kept;
            if (kept.suppresses(kernels, chain, box, area, inputs.iou_threshold, attributes.overlap)) continue;
            workspace.kept.add(chain, box, area);
        }
        const bool after_background = attributes.background_class >= 0 && class_index > attributes.background_class;
        write_detection(outputs, num_kept, box, score_of(key), class_index - (after_background ? 1 : 0));
        ++num_kept;
    }
    return num_kept;
}

void decode_item(const DecodeNmsAttributes& attributes, const DecodeNmsInputs& inputs, const DecodeNmsOutputs& outputs,
                 int64_t item, ItemWorkspace& workspace, const VectorKernels& kernels) {
    const ScoreHeads heads = {inputs.num_anchors,
                              inputs.num_classes,
                              item_of(inputs.class_logits, item),
                              inputs.class_logits.anchor_stride,
                              inputs.class_logits.number_stride,
                              item_of(inputs.objectness, item),
                              inputs.objectness.anchor_stride};
    const ItemOutputs item_outputs = outputs_of(outputs, item, attributes.max_detections);
    collect_candidates(heads, attributes, inputs.score_threshold, kernels, workspace.candidates);
    const int64_t num_kept = keep_best(attributes, inputs, item, item_outputs, workspace, kernels);
    *item_outputs.num_detections = static_cast<int32_t>(num_kept);
    write_padding(item_outputs, num_kept, attributes.max_detections);
}

// Each worker takes the next item until none is left.
void decode_in_parallel(const DecodeNmsAttributes& attributes, const DecodeNmsInputs& inputs,
                        const DecodeNmsOutputs& outputs, std::vector<ItemWorkspace>& workspaces, size_t num_workers,
                        const VectorKernels& kernels) {
    std::atomic<int64_t> next_item{0};
    std::vector<std::exception_ptr> failures(num_workers);
    const auto work = [&](size_t worker) {
        try {
            for (int64_t item = next_item++; item < inputs.batch_size; item = next_item++) {
                decode_item(attributes, inputs, outputs, item, workspaces[worker], kernels);
            }
        } catch (...) {
            failures[worker] = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    threads.reserve(num_workers);
    for (size_t worker = 1; worker < num_workers; ++worker) {
        try {
            threads.emplace_back(work, worker);
        } catch (const std::system_error&) {
            break;  // the system gives no more threads: those there are do all the work
        }
    }
    work(0);
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

}  // namespace

struct DecodeNmsWorkspace::Implementation {
    std::vector<ItemWorkspace> of_threads;
};

DecodeNmsWorkspace::DecodeNmsWorkspace() : implementation_(std::make_unique<Implementation>()) {}
DecodeNmsWorkspace::~DecodeNmsWorkspace() = default;
DecodeNmsWorkspace::DecodeNmsWorkspace(DecodeNmsWorkspace&&) noexcept = default;
DecodeNmsWorkspace& DecodeNmsWorkspace::operator=(DecodeNmsWorkspace&&) noexcept = default;

void decode_nms(const DecodeNmsAttributes& attributes, const DecodeNmsInputs& inputs, const DecodeNmsOutputs& outputs,
                DecodeNmsWorkspace& workspace, int num_threads, InstructionSet instruction_set) {
    const std::string error = inputs.validate(attributes);
    if (!error.empty()) throw std::invalid_argument(error);
    const VectorKernels& kernels = vector_kernels(instruction_set);
    const int64_t num_workers = std::clamp<int64_t>(num_threads, 1, std::max<int64_t>(inputs.batch_size, 1));
    std::vector<ItemWorkspace>& workspaces = workspace.implementation().of_threads;
    if (workspaces.size() < static_cast<size_t>(num_workers)) workspaces.resize(static_cast<size_t>(num_workers));
    if (num_workers > 1) {
        decode_in_parallel(attributes, inputs, outputs, workspaces, static_cast<size_t>(num_workers), kernels);
        return;
    }
    for (int64_t item = 0; item < inputs.batch_size; ++item) {
        decode_item(attributes, inputs, outputs, item, workspaces[0], kernels);
    }
}

}  // namespace boxwright
