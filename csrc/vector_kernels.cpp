#include "vector_kernels.h"

namespace boxwright {

const VectorKernels& vector_kernels(InstructionSet instruction_set) {
    switch (instruction_set) {
#if defined(BOXWRIGHT_HAS_AVX)
        case InstructionSet::avx512: return avx512::kernels;
        case InstructionSet::avx2: return avx2::kernels;
#elif defined(BOXWRIGHT_HAS_NEON)
        case InstructionSet::neon: return neon::kernels;
#endif
        default: return plain::kernels;
    }
}

}  // namespace boxwright
