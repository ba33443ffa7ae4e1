#define BOXWRIGHT_ISA avx512
#include "vector_kernels_body.h"
