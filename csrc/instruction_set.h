// Which SIMD instructions this processor has, asked once at run time.
#ifndef BOXWRIGHT_INSTRUCTION_SET_H
#define BOXWRIGHT_INSTRUCTION_SET_H

#include <string>
#include <vector>

namespace boxwright {

enum class InstructionSet { plain, neon, avx2, avx512 };

const char* name_of(InstructionSet instruction_set);

// Those that both this build and this processor have, best first; `plain` is always among them.
const std::vector<InstructionSet>& available_instruction_sets();

inline InstructionSet best_instruction_set() { return available_instruction_sets().front(); }

// The available set of this name; throws std::invalid_argument where there is none.
InstructionSet instruction_set_of(const std::string& name);

}  // namespace boxwright

#endif
