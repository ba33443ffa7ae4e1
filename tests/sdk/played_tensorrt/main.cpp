// Detects in grey images of the brightnesses given, and prints what was found and what is still in use afterwards.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "boxwright/detector.hpp"
#include "cuda_runtime_api.h"

int main(int, char** argv) {
    try {
        boxwright::Options options;
        if (*argv[2] != '\0') options.score_threshold = std::strtof(argv[2], nullptr);
        boxwright::Detector detector(argv[1], options);
        for (char** level = argv + 3; *level != nullptr; ++level) {
            const std::vector<uint8_t> pixels(48 * 80 * 3, static_cast<uint8_t>(std::atoi(*level)));
            for (const auto& one : detector.detect({pixels.data(), 48, 80, 0})) {
                const float* box = one.box_xyxy;
                std::printf("%s %g %g %g %g %.3f;", detector.class_names()[one.class_id].c_str(), box[0], box[1], box[2],
                            box[3], one.score);
            }
            std::printf("\n");
        }
    } catch (const boxwright::Error& error) {
        std::printf("error: %s\n", error.what());
    }
    std::printf("in use: %d\n", played::live);
}
