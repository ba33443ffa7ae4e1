#define BOXWRIGHT_ISA avx2
#include "vector_kernels_body.h"
