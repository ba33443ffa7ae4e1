#include "instruction_set.h"

#include <stdexcept>

namespace boxwright {

namespace {

std::vector<InstructionSet> detect() {
    std::vector<InstructionSet> found;
#if defined(BOXWRIGHT_HAS_AVX)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        found.push_back(InstructionSet::avx512);
    }
    if (__builtin_cpu_supports("avx2")) found.push_back(InstructionSet::avx2);
#elif defined(BOXWRIGHT_HAS_NEON)
    found.push_back(InstructionSet::neon);  // part of every ARM64 processor
#endif
    found.push_back(InstructionSet::plain);
    return found;
}

}  // namespace

const char* name_of(InstructionSet instruction_set) {
    switch (instruction_set) {
        case InstructionSet::avx512: return "avx512";
        case InstructionSet::avx2: return "avx2";
        case InstructionSet::neon: return "neon";
        case InstructionSet::plain: break;
    }
    return "plain";
}

const std::vector<InstructionSet>& available_instruction_sets() {
    static const std::vector<InstructionSet> sets = detect();
    return sets;
}

InstructionSet instruction_set_of(const std::string& name) {
    std::string names;
    for (InstructionSet candidate : available_instruction_sets()) {
        if (name == name_of(candidate)) return candidate;
        names += (names.empty() ? "" : ", ") + std::string(name_of(candidate));
    }
    throw std::invalid_argument("instruction set: expected one of " + names + ", got " + name + "; choose another");
}

}  // namespace boxwright
